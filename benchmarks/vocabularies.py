"""Memory of the driver of prepare by the number of items.

`python -m benchmarks.vocabularies` prepares logs in which each item has two events, in a new process for each number of items, and
stores the figures. `--page` only writes their table into docs/data.md. `--json FILE` stores the figures elsewhere: those of an
earlier version are in docs/results/vocabularies_before.json, and in the table.
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
from cluster.config.run_config import check_config
from cluster.data.prepare import prepare
from cluster.ray_cluster.session import ray_session
from trainer.data.dataset.hashing import mix

RESULTS, BEFORE = Path("docs/results/vocabularies.json"), Path("docs/results/vocabularies_before.json")
PAGE = Path("docs/data.md")
NUMBERS = (100_000, 1_000_000, 10_000_000)
NUM_FILES, EVENTS_PER_ITEM, EVENTS_PER_USER = 8, 2, 100
FEW = 1_000  # items of the preparation before the measurement, so that it does not include what libraries load
EVERY_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of the driver of prepare by the number of items.")
    parser.add_argument("--page", action="store_true", help="only write the table of the stored figures")
    parser.add_argument("--json", type=Path, help="store the figures in this file, and write no table")
    arguments = parser.parse_args()
    if not arguments.page:
        rows: list[dict[str, Any]] = []
        for number in NUMBERS:
            rows.append(measured_apart(figures_of, number))
            (arguments.json or RESULTS).write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    if not arguments.json:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(page: str) -> str:
    """Return the page with the table of stored figures."""
    stored, before = (json.loads(path.read_text(encoding="utf-8"))["rows"] for path in (RESULTS, BEFORE))
    lines = [
        [
            f"{row['items']:,}",
            f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{old['peak_bytes'] / 1e6:,.0f} MB",
            f"{row['text_bytes'] / 1e6:,.0f} MB",
        ]
        for row, old in zip(stored, before, strict=True)
    ]
    header = ["items", "memory of the driver", "before", "values of the items"]
    return with_table(page, "vocabularies", markdown(header, lines))


def figures_of(num_items: int) -> dict[str, Any]:
    """Prepare a log, and return the peak of the driver's memory beyond its start."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-vocabularies-") as name:
        folder = Path(name)
        few, many = (write_log(folder / str(number), number) for number in (FEW, num_items))
        with ray_session(check_config(few, "benchmark").cluster):
            prepare(check_config(few, "benchmark"), lambda progress: None)
            pa.default_memory_pool().release_unused()
            with peak_memory(anonymous_bytes, EVERY_SECONDS) as peak:
                manifest = prepare(check_config(many, "benchmark"), lambda progress: None)
                peak_bytes = peak()
            return {
                "items": manifest.vocabulary.num_rows,
                "peak_bytes": peak_bytes,
                "text_bytes": 20 * num_items,
            }


def write_log(folder: Path, num_items: int) -> dict[str, Any]:
    """Write a log in which every item has EVENTS_PER_ITEM events, and return the settings that prepare it."""
    folder.mkdir()
    num_events = EVENTS_PER_ITEM * num_items
    random = np.random.default_rng(num_items)
    order = random.permutation(num_events)
    for number, rows in enumerate(np.array_split(np.arange(num_events), NUM_FILES)):
        items = mix((order[rows] % num_items).astype(np.uint64))
        table = {
            "user_id": random.integers(0, max(1, num_events // EVENTS_PER_USER), rows.size),
            "item_id": pa.array([f"{item:016x}" for item in items.tolist()]),
            "time": 1_700_000_000 + rows,
        }
        pq.write_table(pa.table(table), folder / f"events-{number}.parquet", row_group_size=1 << 20)
    return {
        "run": {"dir": str(folder / "run"), "dataset": str(folder / "dataset")},
        "logs": {"path": str(folder / "events-*.parquet")},
    }


if __name__ == "__main__":
    main()
