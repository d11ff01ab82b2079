"""Dynamic ids and item frequencies divided over ranks: memory of a rank, and a step compared with whole copies on every rank.

`python -m benchmarks.sharded_ids` measures with 1, 2, 4 and 8 processes, and one alone as `make bench` does, and stores the
figures. `--page` only writes their tables into docs/ids.md. Both sides get the same batches, in turns. The share of a rank is the
same for every number of ranks, so that the global batch grows. The whole copy is the protocol of earlier versions: ranks gather
all counts, and each repeats the update.
"""

import json
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

from benchmarks import dynamic_ids
from benchmarks.pages import markdown, measure_and_publish, ratio_text, with_table
from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.id_counts import count_ids, exchange_counts
from sharding.dynamic_ids.mapping import look_up_anywhere, observe, observe_shares
from sharding.dynamic_ids.owners import owners_of
from sharding.dynamic_ids.state import DynamicIdsState, look_up, new_state
from sharding.world import ALONE, World, current_world
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
    description = "Dynamic ids divided over ranks, compared with whole copies."
    measure_and_publish(description, _measured, 9, (RESULTS, PAGE), with_tables)


def _measured(turns: int) -> dict[str, Any]:
    return {
        "rows": [measure(world_size, turns) for world_size in WORLD_SIZES],
        "evicting": [evicting_steps(num_rows) for num_rows in (1_000_000, 4_000_000)],
        "alone": [comparison.values() for comparison in dynamic_ids.compare(turns)],
    }


def with_tables(page: str, stored: dict[str, Any]) -> str:
    """Return the page with the tables of stored figures."""
    page = with_table(page, "sharded ids", table_of(stored["rows"]))
    page = with_table(page, "evicting steps", table_of_evictions(stored["evicting"]))
    return with_table(page, "dynamic ids", table_alone(stored["alone"]))


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


def table_of_evictions(rows: list[dict[str, Any]]) -> str:
    """Return the table of steps that evict many ids."""
    lines = []
    for row in rows:
        times = row["step_ms"]
        figures = [f"{value:.1f}" for value in (statistics.median(times), statistics.mean(times), max(times))]
        lines.append([f"{row['num_rows']:,}", str(len(times)), *figures])
    return markdown(["rows", "steps", "median, ms", "mean, ms", "longest, ms"], lines)


def table_alone(rows: list[dict[str, Any]]) -> str:
    """Return the table of operations on one core, compared with numpy."""
    lines = []
    for row in rows:
        speeds = [f"{statistics.median(row[side]) / 1e6:.1f} M {row['unit']}" for side in ("ours", "ceiling")]
        ratio = ratio_text(row)
        lines.append([row["name"], speeds[0], f"{speeds[1]}, {row['ceiling_name']}", ratio])
    return markdown(["operation", "Shoal (median)", "compared with", "ratio: median (spread)"], lines)


def evicting_steps(num_rows: int, num_steps: int = 40) -> dict[str, Any]:
    """Return the times of steps of one process with a full table, each with 37,000 ids of which 11,000 evict others."""
    config = DynamicIdsConfig(num_rows=num_rows + 1, admit_after=1, max_age_steps=1, max_candidates=1000)
    state = new_state(config)
    for numbers in np.array_split(np.arange(num_rows), 20):
        observe(state, count_ids(numbers * np.int64(SPREAD)))
    random = np.random.default_rng(0)
    times = []
    for step in range(num_steps):
        first = num_rows + step * 11_000
        # The newest ids are used, as in a log that moves on; the oldest ones leave.
        used = random.choice(np.arange(first - num_rows // 2, first), 26_000, replace=False)
        seen = count_ids(np.concatenate((used, np.arange(first, first + 11_000))) * np.int64(SPREAD))
        started = time.perf_counter()
        observe(state, seen)
        times.append(1000 * (time.perf_counter() - started))
    return {"num_rows": num_rows, "step_ms": times}


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
    divided, whole = full_state(config, world), full_state(config, ALONE)
    random = np.random.default_rng(world.rank)
    measured = [
        _turn(divided, whole, _batch(random, turn, world, config, num_events), world) for turn in range(turns + 1)
    ]
    frequency = TargetFrequency(NUM_ITEMS, 0.01, world)
    figures: dict[str, Any] = {"mapping_bytes": divided.num_bytes, "frequency_bytes": frequency.num_bytes}
    # The first turn warms up.
    return figures | {name: [times[name] for times in measured[1:]] for name in measured[0]}


def full_state(config: DynamicIdsConfig, world: World) -> DynamicIdsState:
    """Return a rank's part of a mapping in which all rows and all candidates are in use, after two steps."""
    state = new_state(config, world)
    numbers = np.arange(config.num_rows - 1 + config.max_candidates)
    ids = numbers * np.int64(SPREAD)
    is_own = owners_of(ids, world.world_size) == world.rank
    is_row = numbers < config.num_rows - 1
    places = state.entries.add(ids[is_own & is_row], 2, 1)
    state.entries.rows[places] = 1 + numbers[is_own & is_row]
    state.entries.add(ids[is_own & ~is_row], 1, 2)
    state.step = 2
    state.num_rows_used = config.num_rows
    state.num_candidates = config.max_candidates
    return state


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
