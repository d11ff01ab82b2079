"""Memory of an evaluation of a ranking model by the number of impressions: of the driver that merges it, and of workers.

`python -m benchmarks.merged_ranking` measures in new processes for each number of impressions, and stores the figures. `--page`
only writes their table into docs/evaluation.md. The driver merges the rows of 4 workers: 20 impressions of a user on average, one
label, the scores of the model and of all baselines, and slices by history and by popularity. Two workers compute the areas under
curves as during training: all scores differ, so that the counts of scores are as many as the impressions.
"""

import argparse
import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks.memory import anonymous_bytes, measured_apart, peak_memory
from benchmarks.pages import markdown, with_table
from sharding.world import World, current_world
from trainer.data.dataset.manifest import Counts, Manifest
from trainer.evaluation.ranking import tables
from trainer.evaluation.ranking.judged import Areas, Judged, MergedCounts, count_scores
from trainer.evaluation.ranking.names import BASELINES
from trainer.evaluation.ranking.over_ranks import areas_over_ranks
from trainer.evaluation.ranking.results import summarize
from trainer.evaluation.ranking.scored import merge_parts

RESULTS, PAGE = Path("docs/results/merged_ranking.json"), Path("docs/evaluation.md")
NUMBERS = (100_000, 1_000_000, 10_000_000)
LABEL = "click"
NUM_ITEMS, NUM_WORKERS, PER_USER = 100_000, 4, 20
GROUP_ROWS = 100_000
NUM_RANKS, BATCH = 2, 4096
FEW = 1_000  # impressions before the measurement, so that it does not include what libraries load at their first use
EVERY_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Memory of the driver while it merges an evaluation of a ranking model."
    )
    parser.add_argument("--page", action="store_true", help="only write the table of the stored figures")
    if not parser.parse_args().page:
        rows = []
        for number in NUMBERS:
            rows.append(measured_apart(figures_of, number) | {"worker_bytes": worker_bytes(number)})
            RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), stored), encoding="utf-8")


def with_tables(page: str, stored: dict[str, Any]) -> str:
    """Return the page with the table of stored figures."""
    lines = [
        [
            f"{row['impressions']:,}",
            f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{row['resident_bytes'] / 1e6:,.0f} MB",
            f"{row['row_bytes'] / 1e6:,.0f} MB",
            f"{row['worker_bytes'] / 1e6:,.0f} MB",
            f"{24 * row['impressions'] / NUM_RANKS / 1e6:,.0f} MB",
        ]
        for row in stored["rows"]
    ]
    header = [
        "impressions",
        "memory of the driver",
        "with pages of temporary files",
        "rows of all workers, uncompressed",
        f"memory of one of {NUM_RANKS} workers in training",
        "its scores and weights",
    ]
    return with_table(page, "merged ranking evaluation", markdown(header, lines))


def figures_of(num_impressions: int) -> dict[str, int]:
    """Merge the rows of some impressions, and return the peaks of memory beyond the start, and the size of the rows."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-ranking-") as name:
        few, many = Path(name) / "few", Path(name) / "many"
        write_parts(few / "parts", FEW, NUM_WORKERS)
        _merge(few, FEW)
        row_bytes = write_parts(many / "parts", num_impressions, NUM_WORKERS)
        pa.default_memory_pool().release_unused()
        with (
            peak_memory(anonymous_bytes, EVERY_SECONDS) as peak,
            peak_memory(lambda: int(psutil.Process().memory_info().rss), EVERY_SECONDS) as resident,
        ):
            _merge(many, num_impressions)
            return {
                "impressions": num_impressions,
                "peak_bytes": peak(),
                "resident_bytes": resident(),
                "row_bytes": row_bytes,
            }


def _merge(folder: Path, num_impressions: int) -> None:
    """Merge the rows in a folder, and write its results, as the driver does."""
    counts = Counts(1, 1, {}, num_impressions, NUM_ITEMS, 1, 0, 0, 0, 0, 0, 0)
    manifest = Manifest("benchmark", {}, {"kind": "leave_one_out", "min_events": 3}, counts, {}, (), task="ranking")
    impressions = merge_parts(folder / "parts", (LABEL,))
    results = summarize(impressions, "test", "step", manifest, 50, None)
    tables.write(folder, results, impressions, pa.array(range(NUM_ITEMS)))


def worker_bytes(num_impressions: int) -> int:
    """Return the peak of memory beyond the start of the largest of NUM_RANKS workers that share some impressions."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-ranking-") as folder:
        multiprocessing.spawn(_rank, (num_impressions, folder), nprocs=NUM_RANKS)
        return max(int((Path(folder) / f"{rank}.txt").read_text()) for rank in range(NUM_RANKS))


def _rank(rank: int, num_impressions: int, folder: str) -> None:
    """Measure on one rank, and write its peak into the folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=NUM_RANKS,
        timeout=timedelta(seconds=300),
    )
    try:
        world = current_world(torch.device("cpu"))
        _areas(world, FEW)
        with peak_memory(anonymous_bytes, EVERY_SECONDS) as peak:
            _areas(world, num_impressions)
            (Path(folder) / f"{rank}.txt").write_text(str(peak()))
    finally:
        dist.destroy_process_group()


def _areas(world: World, num_impressions: int) -> Areas:
    """Return the areas of random impressions, which the ranks score in batches. Collective."""
    random = np.random.default_rng(world.rank)
    counts = MergedCounts()
    for start in range(0, num_impressions // world.world_size, BATCH):
        scores = random.normal(size=min(BATCH, num_impressions // world.world_size - start))
        judged = Judged(np.zeros(scores.size, np.int64), scores, random.random(scores.size) < 0.2, np.ones(scores.size))
        counts.add(count_scores(judged))
    return areas_over_ranks(counts.merged(), world)


def write_parts(folder: Path, num_impressions: int, num_workers: int, group_rows: int = GROUP_ROWS) -> int:
    """Write the rows of all workers, and return their bytes in memory. How many workers share the rows changes none of them."""
    folder.mkdir(parents=True)
    num_users = max(1, num_impressions // PER_USER)
    writers: dict[int, pq.ParquetWriter] = {}
    total = 0
    for number, start in enumerate(range(0, num_users, max(1, group_rows // PER_USER))):
        users = np.arange(start, min(num_users, start + max(1, group_rows // PER_USER)))
        table = _rows(np.random.default_rng(number), users)
        worker = number % num_workers
        if worker not in writers:
            writers[worker] = pq.ParquetWriter(folder / f"rank-{worker}.parquet", table.schema)
        writers[worker].write_table(table)
        total += table.nbytes
    for writer in writers.values():
        writer.close()
    return total


def _rows(random: np.random.Generator, users: np.ndarray) -> pa.Table:
    """Return the impressions of some users."""
    each = random.integers(1, 2 * PER_USER, users.size)
    user = np.repeat(users, each)
    count = user.size
    utility = random.normal(size=count) + np.repeat(random.normal(size=users.size), each)
    click = random.random(count) < 1.0 / (1.0 + np.exp(1.0 - utility))
    columns: dict[str, Any] = {
        "row_id": user,
        "place": np.arange(count) - np.repeat(np.cumsum(each) - each, each),
        "user": user,
        "item": random.integers(0, NUM_ITEMS, count),
        "time": random.integers(0, 1 << 30, count),
        "history_length": np.repeat(users % 97, each),
        "item_impressions": random.geometric(0.01, count) - 1,
        "weight": np.where(click, 1.0, 1.0 / 0.3),
        f"label.{LABEL}": click.astype(np.float32),
        f"logit.{LABEL}": (utility + random.normal(size=count)).astype(np.float32),
    }
    for name in BASELINES:
        columns[f"logit.{name}.{LABEL}"] = np.round(random.normal(size=count) + utility / 3, 2).astype(np.float32)
    return pa.table(columns)


if __name__ == "__main__":
    main()
