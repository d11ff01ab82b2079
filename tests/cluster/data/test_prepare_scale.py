"""The shapes that large logs have, at a small size: partitions that are split, users with very many events."""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from tests.support.prepared import config_at, made, rejected_rows, rows_by_user, write_events, write_table
from trainer.data.dataset.manifest import verify_dataset

pytestmark = pytest.mark.usefixtures("ray_session")

MAX_MEGABYTES = 1500


def random_rows(seed: int, count: int, first_time: int = 0) -> list[tuple[Any, ...]]:
    choose = np.random.default_rng(seed)
    users, items = choose.integers(0, 60, count), choose.integers(1, 40, count)
    times = first_time + choose.integers(0, 300, count)
    return [(f"u{u}", int(i), int(t), float(i % 3)) for u, i, t in zip(users, items, times, strict=True)]


@pytest.mark.parametrize("ranking", [False, True])
def test_a_split_partition_holds_the_same_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranking: bool
) -> None:
    monkeypatch.setattr("cluster.data.prepare.EVENTS_PER_PARTITION", 400)
    write_events(tmp_path / "logs/a.parquet", random_rows(1, 1200), "y", row_group_size=300)
    users = [f"u{n}" for n in range(50)]
    write_table(tmp_path / "users.parquet", {"user_id": users, "age": [float(n) for n in range(50)]})
    logs: dict[str, Any] = {"features": {"z": {"kind": "categorical", "column": "item_id"}}}
    logs["users"] = {"path": str(tmp_path / "users.parquet"), "features": {"age": {"kind": "numeric", "buckets": 3}}}
    if ranking:
        logs |= {"labels": ["y"], "history_label": "y"}
    whole = config_at(tmp_path, "whole", logs=logs)
    expected = made(whole)
    assert len(expected.parts) == 3

    monkeypatch.setattr("trainer.data.prepare.group_pass.SPLIT_ROWS", 380)
    monkeypatch.setattr("trainer.data.prepare.group_pass.SHARE_ROWS", 100)
    config = config_at(tmp_path, "split", logs=logs)
    manifest = made(config)
    verify_dataset(config.dataset_dir, manifest)
    shares = manifest.source["partitioning"]["shares"]
    assert len(shares) == 3
    assert max(shares) >= 4
    assert 3 < len(manifest.parts) <= sum(shares)
    compare(config, whole)
    assert (manifest.counts, manifest.features, manifest.labels) == (
        expected.counts,
        expected.features,
        expected.labels,
    )

    # The partition of a user does not change when more users arrive, however many rows it then has.
    monkeypatch.setattr("trainer.data.prepare.group_pass.SPLIT_ROWS", 1)
    write_events(tmp_path / "logs/b.parquet", random_rows(2, 600, 300), "y")
    for one in (whole, config):
        after = made(one)
        verify_dataset(one.dataset_dir, after)
    assert after.source["partitioning"]["shares"] == shares
    compare(config, whole)


def compare(config: Any, other: Any) -> None:
    result, expected = rows_by_user(config), rows_by_user(other)
    assert result.keys() == expected.keys()
    for user, row in result.items():
        assert vars(row) | {"number": 0} == vars(expected[user]) | {"number": 0}


def memory_of_worker() -> int:
    """Return the most that the worker has held so far, in megabytes."""
    time.sleep(0.2)  # so that the next one runs on another worker
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def test_a_user_with_a_million_events_among_others(tmp_path: Path) -> None:
    choose = np.random.default_rng(3)
    users = np.concatenate([np.full(1_000_000, 7), choose.integers(100, 2_000, 100_000)])
    order = choose.permutation(users.size)
    columns = {
        "user_id": pa.array(users[order]),
        "item_id": pa.array(choose.integers(1, 5_000, users.size)),
        "time": pa.array(np.arange(users.size)),
        "price": pa.array(choose.random(users.size).astype(np.float32)),
    }
    write_table(tmp_path / "logs/a.parquet", columns, row_group_size=200_000)
    config = config_at(tmp_path, logs={"features": {"price": {"kind": "numeric", "buckets": 8}}})
    started = time.monotonic()
    manifest = made(config)
    seconds = time.monotonic() - started
    assert manifest.profile["longest_history"] == 1_000_000
    assert manifest.counts.rows_kept == 1_100_000
    heavy = [group for part in manifest.parts for group in part.row_groups if group.num_events >= 1_000_000]
    assert len(heavy) == 1
    for part in manifest.parts:
        table = pq.read_table(config.dataset_dir / part.path, columns=["user", "item", "time"])
        for row in table.filter(pa.compute.equal(table.column("user"), 7)).to_pylist():
            mine = users[order] == 7
            assert row["time"] == np.flatnonzero(mine).tolist()
            assert row["item"] == np.asarray(columns["item_id"])[mine].tolist()  # numbers of 1 .. 4999
    used = max(ray.get([ray.remote(memory_of_worker).remote() for _ in range(4)]))
    assert used < MAX_MEGABYTES, f"{used} MB"
    assert seconds < 60.0


@pytest.mark.parametrize("most", [3, 10])
def test_long_histories_keep_their_most_recent_events(tmp_path: Path, most: int) -> None:
    rows = random_rows(4, 400)
    rows += rows[:5]
    write_events(tmp_path / "logs/a.parquet", rows, "y")
    config = config_at(tmp_path, logs={"max_events_per_user": most})
    manifest = made(config)
    kept = list(dict.fromkeys(row[:3] for row in rows))
    for user, row in rows_by_user(config).items():
        events = sorted((event for event in kept if event[0] == user), key=lambda event: event[2])
        assert row.history == [(item, time) for _, item, time in events[-most:]]
    rejected = manifest.counts.rejected
    too_many = len(kept) - manifest.counts.rows_kept
    assert rejected == {"duplicate": len(rows) - len(kept), "over max_events_per_user": too_many}
    assert len(rejected_rows(config)) == sum(
        rejected.values()
    )  # far more than logs.max_rejected_fraction, as asked for

    more = [("u1", 50 + n, 1000 + n, 0.0) for n in range(most + 2)]
    write_events(tmp_path / "logs/b.parquet", more, "y")
    before = rows_by_user(config)["u1"].history
    made(config)
    assert rows_by_user(config)["u1"].history == [*before, *[(item, time) for _, item, time, _ in more[-most:]]]
    assert rejected_rows(config, 1) == [("b.parquet", n, "over max_events_per_user") for n in (0, 1)]
