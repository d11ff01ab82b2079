"""prepare in events per second (Ray running), beside a bare pyarrow read and sort of the same files."""

import shutil
from pathlib import Path

import pyarrow.dataset as ds

from benchmarks.measure import Comparison, take_turns
from cluster.config import Config
from cluster.prepare import prepare


def compare(config: Config, logs: Path, num_events: int, turns: int) -> Comparison:
    """`config.dataset_dir` is written and deleted at each turn."""

    def ours() -> None:
        shutil.rmtree(config.dataset_dir, ignore_errors=True)
        prepare(config, lambda progress: None)

    def ceiling() -> None:
        table = ds.dataset(sorted(logs.glob("events-*.parquet"))).to_table(columns=["user_id", "item_id", "time"])
        table.sort_by([("user_id", "ascending"), ("time", "ascending")])

    return take_turns(
        "prepare", "events/s", num_events, ours, ceiling, "bare pyarrow read and sort, all threads", turns
    )
