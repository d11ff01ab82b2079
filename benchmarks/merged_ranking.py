"""Memory of the driver while it merges an evaluation of a ranking model, by the number of impressions.

`python -m benchmarks.merged_ranking` measures in a new process for each number of impressions, and stores the figures. `--page`
only writes their table into docs/evaluation.md. The rows are those of 4 workers: 20 impressions of a user on average, one label,
the scores of the model and of all baselines, and slices by history and by popularity.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import anonymous_bytes, measured_apart, peak_memory
from benchmarks.pages import markdown, with_table
from trainer.data.dataset.manifest import Counts, Manifest
from trainer.evaluation.ranking import tables
from trainer.evaluation.ranking.names import BASELINES
from trainer.evaluation.ranking.results import summarize
from trainer.evaluation.ranking.scored import merge_parts

RESULTS, PAGE = Path("docs/results/merged_ranking.json"), Path("docs/evaluation.md")
NUMBERS = (100_000, 1_000_000, 10_000_000)
LABEL = "click"
NUM_ITEMS, NUM_WORKERS, PER_USER = 100_000, 4, 20
GROUP_ROWS = 100_000
EVERY_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Memory of the driver while it merges an evaluation of a ranking model."
    )
    parser.add_argument("--page", action="store_true", help="only write the table of the stored figures")
    if not parser.parse_args().page:
        rows = []
        for number in NUMBERS:
            rows.append(measured_apart(figures_of, number))
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
        ]
        for row in stored["rows"]
    ]
    header = [
        "impressions",
        "memory of the driver",
        "with pages of temporary files",
        "rows of all workers, uncompressed",
    ]
    return with_table(page, "merged ranking evaluation", markdown(header, lines))


def figures_of(num_impressions: int) -> dict[str, int]:
    """Merge the rows of some impressions, and return the peaks of memory beyond the start, and the size of the rows."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-ranking-") as name:
        folder = Path(name)
        row_bytes = write_parts(folder / "parts", num_impressions, NUM_WORKERS)
        counts = Counts(1, 1, {}, num_impressions, NUM_ITEMS, 1, 0, 0, 0, 0, 0, 0)
        manifest = Manifest("benchmark", {}, {"kind": "leave_one_out", "min_events": 3}, counts, {}, (), task="ranking")
        pa.default_memory_pool().release_unused()
        with (
            peak_memory(anonymous_bytes, EVERY_SECONDS) as peak,
            peak_memory(lambda: int(psutil.Process().memory_info().rss), EVERY_SECONDS) as resident,
        ):
            impressions = merge_parts(folder / "parts", (LABEL,))
            results = summarize(impressions, "test", "step", manifest, 50, None)
            tables.write(folder, results, impressions, pa.array(range(NUM_ITEMS)))
            return {
                "impressions": num_impressions,
                "peak_bytes": peak(),
                "resident_bytes": resident(),
                "row_bytes": row_bytes,
            }


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
