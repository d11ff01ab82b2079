"""Dynamic ids and item frequencies divided over ranks: memory of a rank, and a step compared with whole copies on every rank.

`python -m benchmarks.sharded_ids` measures with 1, 2, 4 and 8 processes and stores the figures; `--page` only writes their table
into docs/ids.md. Both sides get the same batches, in turns. The share of a rank is the same for every number of ranks, so that the
global batch grows. The whole copy is the protocol of earlier versions: ranks gather all counts, and each repeats the update.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from numpy.typing import NDArray

from benchmarks.pages import markdown, with_table
from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.id_counts import count_ids, exchange_counts
from sharding.dynamic_ids.mapping import look_up_anywhere, observe, observe_shares
from sharding.dynamic_ids.state import DynamicIdsState, look_up, new_state
from sharding.world import World, current_world
from trainer.global_batch.item_frequency import TargetFrequency

RESULTS, PAGE = Path("docs/results/sharded_ids.json"), Path("docs/ids.md")
NUM_ROWS = 1_000_000
NUM_ITEMS = 1_000_000
BATCH_EVENTS = 20_000  # of a rank
NEW_SHARE = 20  # one event in so many has a new id, which is admitted at once and evicts another
WORLD_SIZES = (1, 2, 4, 8)
SPREAD = 0x1E3779B97F4A7C15  # makes ids of numbers spread over all of int64
CONFIG = DynamicIdsConfig(num_rows=NUM_ROWS + 1, admit_after=2, max_age_steps=1, max_candidates=NUM_ROWS)

Int64 = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description="Dynamic ids divided over ranks, compared with whole copies.")
    parser.add_argument("--turns", type=int, default=9, help="measured steps of each number of ranks")
    parser.add_argument("--page", action="store_true", help="only write the table of the stored figures")
    arguments = parser.parse_args()
    if not arguments.page:
        rows = [measure(world_size, arguments.turns) for world_size in WORLD_SIZES]
        values = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "rows": rows}
        RESULTS.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), "sharded ids", table_of(stored["rows"])), "utf-8")


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return the table of stored figures."""
    header = [
        "ranks",
        "mapping, MB per rank",
        "times 1/W",
        "item frequencies, MB per rank",
        "step, ms",
        "whole copies, ms",
    ]
    header += ["look-up, ms", "whole copy, ms"]
    lines = []
    for row in rows:
        size = row["world_size"]
        share = row["mapping_bytes"] * size / rows[0]["mapping_bytes"]
        timed = [_spread(row[name]) for name in ("step_ms", "whole_step_ms", "look_up_ms", "whole_look_up_ms")]
        memory = [f"{row['mapping_bytes'] / 1e6:.1f}", f"{share:.3f}", f"{row['frequency_bytes'] / 1e6:.2f}"]
        lines.append([str(size), *memory, *timed])
    return markdown(header, lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


def measure(world_size: int, turns: int) -> dict[str, Any]:
    """Return the figures of a number of ranks: memory of the largest rank, times of the slowest in each turn."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-ids-") as folder:
        multiprocessing.spawn(_rank, (world_size, turns, folder), nprocs=world_size)
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world_size)]
    figures: dict[str, Any] = {"world_size": world_size}
    for name in ("mapping_bytes", "frequency_bytes"):
        figures[name] = max(rank[name] for rank in ranks)
    for name in ("step_ms", "whole_step_ms", "look_up_ms", "whole_look_up_ms"):
        figures[name] = [max(of_turn) for of_turn in zip(*(rank[name] for rank in ranks), strict=True)]
    return figures


def _rank(rank: int, world_size: int, turns: int, folder: str) -> None:
    """Measure on one rank, and write its figures into the folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=300),
    )
    try:
        figures = figures_of(current_world(torch.device("cpu")), turns)
        (Path(folder) / f"{rank}.json").write_text(json.dumps(figures))
    finally:
        dist.destroy_process_group()


def figures_of(
    world: World, turns: int, config: DynamicIdsConfig = CONFIG, num_events: int = BATCH_EVENTS
) -> dict[str, Any]:
    """Return this rank's figures. Collective."""
    divided, whole = new_state(config, world), new_state(config)
    # Ids that are seen twice get the rows; those seen once after them are the candidates.
    for numbers in np.array_split(np.arange(config.num_rows - 1 + config.max_candidates), 40):
        ids = np.concatenate((numbers, numbers[numbers < config.num_rows - 1])) * np.int64(SPREAD)
        observe_shares(divided, count_ids(ids[world.rank :: world.world_size]), np.empty(0, np.int64))
        observe(whole, count_ids(ids))
    random = np.random.default_rng(world.rank)
    measured = [
        _turn(divided, whole, _batch(random, turn, world, config, num_events), world) for turn in range(turns + 1)
    ]
    frequency = TargetFrequency(NUM_ITEMS, 0.01, world)
    figures: dict[str, Any] = {"mapping_bytes": divided.num_bytes, "frequency_bytes": frequency.num_bytes}
    # The first turn warms up.
    return figures | {name: [times[name] for times in measured[1:]] for name in measured[0]}


def _turn(divided: DynamicIdsState, whole: DynamicIdsState, batch: Int64, world: World) -> dict[str, float]:
    """Return the milliseconds of each operation with a batch, on this rank."""
    asked = np.unique(batch)
    actions: dict[str, Callable[[], Int64]] = {
        "step_ms": lambda: observe_shares(divided, count_ids(batch), asked)[1],
        "whole_step_ms": lambda: _observe_whole(whole, batch, asked, world),
        "look_up_ms": lambda: look_up_anywhere(divided, asked).rows,
        "whole_look_up_ms": lambda: look_up(whole, asked).rows,
    }
    times, rows = {}, []
    for name, action in actions.items():
        world.barrier()
        started = time.perf_counter()
        rows.append(action())
        times[name] = 1000 * (time.perf_counter() - started)
    if not all(np.array_equal(rows[0], other) for other in rows):
        raise RuntimeError("the divided mapping and the whole one give different rows")
    return times


def _observe_whole(state: DynamicIdsState, batch: Int64, asked: Int64, world: World) -> Int64:
    observe(state, exchange_counts(count_ids(batch), world))
    return look_up(state, asked).rows


def _batch(random: np.random.Generator, turn: int, world: World, config: DynamicIdsConfig, num_events: int) -> Int64:
    """Return the share of a rank: ids skewed over those with rows, and new ids that occur twice."""
    numbers = (config.num_rows * random.random(num_events) ** 4).astype(np.int64)
    num_new = num_events // NEW_SHARE // 2
    first = config.num_rows + config.max_candidates + (turn * world.world_size + world.rank) * num_new
    numbers[: 2 * num_new] = np.repeat(first + np.arange(num_new), 2)
    return numbers * np.int64(SPREAD)


if __name__ == "__main__":
    main()
