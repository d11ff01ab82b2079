"""Memory of the driver while it merges an evaluation of a next-item model, by the number of users.

`python -m benchmarks.merged_evaluation` measures in a new process for each number of users, and stores the figures. `--page` only
writes their table into docs/evaluation.md. The rows are those of 4 workers: one target of each user, and lists of 20 items of the
model and of 4 baselines.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import anonymous_bytes, measured_apart, peak_memory
from benchmarks.pages import markdown, with_table
from trainer.config.evaluate import EvaluateConfig
from trainer.data.dataset.manifest import Counts, Manifest
from trainer.evaluation.next_item import results
from trainer.evaluation.next_item.merged_rows import merge_parts
from trainer.evaluation.next_item.results import Evaluated, summarize

RESULTS, PAGE = Path("docs/results/merged_evaluation.json"), Path("docs/evaluation.md")
NUMBERS = (10_000, 100_000, 1_000_000)
NUM_ITEMS, NUM_PLACES, NUM_BASELINES, NUM_WORKERS = 100_000, 20, 4, 4
BATCH = 25_000  # rows of a row group
EVERY_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of the driver while it merges an evaluation.")
    parser.add_argument("--page", action="store_true", help="only write the table of the stored figures")
    if not parser.parse_args().page:
        rows = [measured_apart(measured, number) for number in NUMBERS]
        RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), stored), encoding="utf-8")


def with_tables(page: str, stored: dict[str, Any]) -> str:
    """Return the page with the table of stored figures."""
    lines = [
        [
            f"{row['users']:,}",
            f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{row['row_bytes'] / 1e6:,.0f} MB",
            f"{row['value_bytes'] / 1e6:,.0f} MB",
        ]
        for row in stored["rows"]
    ]
    header = [
        "users",
        "memory of the driver",
        "rows of all workers, uncompressed",
        "values of the metrics of one ranking",
    ]
    return with_table(page, "merged evaluation", markdown(header, lines))


def measured(num_users: int) -> dict[str, int]:
    """Return the figures of a number of users."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-merge-") as folder:
        return figures_of(num_users, Path(folder))


def figures_of(num_users: int, folder: Path) -> dict[str, int]:
    """Merge the rows of some users, and return the peak of memory beyond the start, and the sizes of what is merged."""
    row_bytes = write_parts(folder / "parts", num_users)
    counts = Counts(1, 1, {}, num_users, NUM_ITEMS, 1, 0, 0, 0, 0, 0, 0)
    manifest = Manifest("benchmark", {}, {"kind": "leave_one_out", "min_events": 3}, counts, {}, ())
    train_events = np.arange(NUM_ITEMS, 0, -1)
    config = EvaluateConfig(ks=[1, 5, 10, NUM_PLACES])
    pa.default_memory_pool().release_unused()
    with peak_memory(anonymous_bytes, EVERY_SECONDS) as peak:
        merged = merge_parts(folder / "parts")
        summary, columns = summarize(merged, Evaluated("test", "step", config, manifest, train_events, "all"))
        results.write(folder, summary, merged, columns, pa.array(range(NUM_ITEMS)))
        peak_bytes = peak()
    value_bytes = sum(of.values.nbytes + (0 if of.weights is None else of.weights.nbytes) for of in columns.values())
    return {"users": num_users, "peak_bytes": peak_bytes, "row_bytes": row_bytes, "value_bytes": value_bytes}


def write_parts(folder: Path, num_users: int) -> int:
    """Write the rows of all workers, and return their bytes in memory."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    total = 0
    for worker in range(NUM_WORKERS):
        row_ids = np.arange(worker, num_users, NUM_WORKERS)
        writer = None
        for start in range(0, row_ids.size, BATCH):
            table = _rows(random, row_ids[start : start + BATCH])
            writer = writer or pq.ParquetWriter(folder / f"rank-{worker}.parquet", table.schema)
            writer.write_table(table)
            total += table.nbytes
        assert writer is not None
        writer.close()
    return total


def _rows(random: np.random.Generator, row_ids: np.ndarray) -> pa.Table:
    count = row_ids.size
    offsets = pa.array(np.arange(count + 1, dtype=np.int32))
    rankings = ["", *(f"baseline{number}_" for number in range(NUM_BASELINES))]
    columns: dict[str, Any] = {
        "row_id": row_ids,
        "user": [f"user-{row}" for row in row_ids],
        "history_length": row_ids % 97 + 1,
        "targets": pa.ListArray.from_arrays(offsets, pa.array(random.integers(1, NUM_ITEMS, count))),
    }
    for name in rankings:
        ranks, items = random.integers(0, NUM_ITEMS, count), random.integers(1, NUM_ITEMS, count * NUM_PLACES)
        columns[f"{name}ranks"] = pa.ListArray.from_arrays(offsets, pa.array(ranks))
        columns[f"{name}top_items"] = pa.FixedSizeListArray.from_arrays(pa.array(items.astype(np.int32)), NUM_PLACES)
    return pa.table(columns)


if __name__ == "__main__":
    main()
