"""prepare in events per second (Ray running), compared with engines that sort and group the same files to Parquet.

The log is what a company has: files by time, every user in every file, items by popularity. Shoal also checks rows, drops
duplicates, numbers items, cuts splits, hashes what it wrote and writes a card; the others only sort and group.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.measure import Comparison, take_turns
from cluster.config.run_config import Config
from cluster.data.prepare import prepare

NUM_FILES = 8
NUM_ITEMS = 50_000
EVENTS_PER_USER = 100


def write_log(folder: Path, num_events: int, seed: int = 1) -> list[Path]:
    """Write a log of `num_events` in time order over NUM_FILES files."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    num_users = max(1, num_events // EVENTS_PER_USER)
    weights = 1.0 / np.arange(1, NUM_ITEMS + 1)
    bounds = np.cumsum(weights / weights.sum())
    paths = []
    for number, rows in enumerate(np.array_split(np.arange(num_events), NUM_FILES)):
        table = {
            "user_id": random.integers(0, num_users, rows.size),
            "item_id": np.searchsorted(bounds, random.random(rows.size)),
            "time": 1_700_000_000 + rows * 7_776_000 // num_events,  # 90 days
        }
        paths.append(folder / f"events-{number:02d}.parquet")
        pq.write_table(pa.table(table), paths[-1], compression="zstd", row_group_size=1 << 20)
    return paths


def compare_with_arrow(config: Config, logs: list[Path], num_events: int, turns: int) -> Comparison:
    """Compare prepare with Arrow. `config.dataset_dir` is written and deleted at each turn."""

    def ceiling() -> None:
        table = ds.dataset([str(path) for path in logs]).to_table(columns=["user_id", "item_id", "time"])
        table.sort_by([("user_id", "ascending"), ("time", "ascending")])

    label = "bare pyarrow read and sort, all threads"
    return take_turns("prepare", "events/s", num_events, _ours(config), ceiling, label, turns)


def compare_with_duckdb(config: Config, logs: list[Path], num_events: int, turns: int) -> Comparison:
    import duckdb

    target = config.dataset_dir.parent / "duckdb.parquet"
    query = f"""
        COPY (
            SELECT user_id, list(item_id ORDER BY time) AS item, list(time ORDER BY time) AS time
            FROM read_parquet({[str(path) for path in logs]}) GROUP BY user_id
        ) TO '{target}' (FORMAT parquet, COMPRESSION zstd)
    """

    def other() -> None:
        with duckdb.connect() as connection:
            connection.execute(query)

    label = f"DuckDB {duckdb.__version__}: list(ORDER BY) GROUP BY to Parquet"
    return take_turns("prepare", "events/s", num_events, _ours(config), other, label, turns)


def compare_with_polars(config: Config, logs: list[Path], num_events: int, turns: int) -> Comparison:
    import polars

    target = config.dataset_dir.parent / "polars.parquet"

    def other() -> None:
        events = polars.read_parquet(logs, columns=["user_id", "item_id", "time"]).sort("user_id", "time")
        events.group_by("user_id", maintain_order=True).agg("item_id", "time").write_parquet(target, compression="zstd")

    label = f"Polars {polars.__version__} in memory: sort, group_by, to Parquet"
    return take_turns("prepare", "events/s", num_events, _ours(config), other, label, turns)


def _ours(config: Config) -> Callable[[], None]:
    def work() -> None:
        shutil.rmtree(config.dataset_dir, ignore_errors=True)
        prepare(config, lambda progress: None)

    return work
