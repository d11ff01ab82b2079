"""Appending: changed files, drifting columns and other settings are refused by name, and the dataset stays as it was."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.prepared import (
    config_at,
    made,
    refusal,
    vocabulary,
    write_events,
    write_table,
)
from trainer.data.dataset.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("ray_session")


def test_old_files_that_changed_or_are_gone_are_refused(tmp_path: Path) -> None:
    for day in range(3):
        write_events(tmp_path / f"logs/{day}.parquet", [(user, n, 10 * day + n) for user in range(9) for n in range(3)])
    before = made(config_at(tmp_path))
    write_events(tmp_path / "logs/3.parquet", [(1, 3, 30)])
    moved = tmp_path / "1.parquet"
    (tmp_path / "logs/1.parquet").rename(moved)
    message = refusal(config_at(tmp_path))
    assert "it was made from" in message
    assert "0.parquet and 2 more" in message
    moved.rename(tmp_path / "logs/1.parquet")
    content = (tmp_path / "logs/1.parquet").read_bytes()
    (tmp_path / "logs/1.parquet").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    message = refusal(config_at(tmp_path))
    for part in ("1.parquet", "changed", "run.dataset"):
        assert part in message
    assert read_manifest(tmp_path / "dataset") == before


@pytest.mark.parametrize(
    ("column", "values", "source", "words"),
    [
        ("item_id", pa.array([1], pa.int32()), "logs", ['"item_id"', "int32 here and int64 in the logs of the dataset"]),
        ("user_id", pa.array(["1"]), "logs", ['"user_id"', "string here and int64"]),
        ("time", pa.array([1], pa.timestamp("s")), "logs", ['"time"', "int64 in the logs of the dataset"]),
        ("color", pa.array([7]), "logs", ['"color"', "logs.features.color", "int64 here and string"]),
        ("click", None, "logs", ['no column "click"', "logs.labels"]),
        ("city", pa.array([3]), "users", ['"city"', "logs.users.features.city", "int64 here and string"]),
        ("time", pa.array([1.0]), "history", ['"time"', "logs.history.time", "double here and int64"]),
    ],
)  # fmt: skip
def test_columns_that_drift_are_refused_with_file_and_column(
    tmp_path: Path, column: str, values: pa.Array | None, source: str, words: list[str]
) -> None:
    write_events(tmp_path / "logs/a.parquet", [(1, n, n, 1.0, "red") for n in range(5)], "click", "color")
    write_events(tmp_path / "history/a.parquet", [(1, 1, 1)])
    write_table(tmp_path / "users/a.parquet", {"user_id": [1], "city": ["x"]})
    logs = {
        "labels": ["click"],
        "history": {"path": str(tmp_path / "history")},
        "features": {"color": {"kind": "categorical"}},
        "users": {"path": str(tmp_path / "users"), "features": {"city": {"kind": "categorical"}}},
    }
    config = config_at(tmp_path, logs=logs)
    before = made(config)
    day: dict[str, Any] = {"user_id": [1], "item_id": [9], "time": [99], "click": [0.0], "color": ["red"]}
    files = {
        "logs": day,
        "history": {"user_id": [1], "item_id": [9], "time": [99]},
        "users": {"user_id": [2], "city": ["y"]},
    }
    columns = files[source]
    files[source] = {name: v for name, v in columns.items() if name != column} | (
        {} if values is None else {column: values}
    )
    for name, value in files.items():
        write_table(tmp_path / name / "b.parquet", value)
    message = refusal(config)
    for word in ("b.parquet", *words):
        assert word in message
    assert read_manifest(config.dataset_dir) == before
    assert not list(config.dataset_dir.glob(".work-*"))


def test_without_new_events_other_catalogues_and_splits_are_refused_by_name(tmp_path: Path) -> None:
    write_events(tmp_path / "logs/a.parquet", [(1, n, n) for n in range(5)])
    write_table(tmp_path / "items.parquet", {"item_id": [1], "price": [1.0]})
    logs = {"items": {"path": str(tmp_path / "items.parquet"), "features": {"price": {"kind": "numeric"}}}}
    made(config_at(tmp_path, logs=logs))
    message = refusal(config_at(tmp_path, logs=logs, split={"min_events": 4}))
    assert "'min_events': 3, 'validation_share': 1.0}, now" in message
    write_table(tmp_path / "items.parquet", {"item_id": [1, 2], "price": [1.0, 2.0]})
    assert "items or users have changed" in refusal(config_at(tmp_path, logs=logs))
    write_events(tmp_path / "logs/b.parquet", [(1, 2, 9)])
    config = config_at(tmp_path, logs=logs)
    manifest = made(config)  # with new events the catalogue is read again
    assert manifest.items is not None
    prices = pq.read_table(config.dataset_dir / manifest.items.path).column("item.price").to_pylist()
    assert [prices[number] for number in range(1, 3)] == [pytest.approx(float("nan"), nan_ok=True), 1.0]
    assert prices[vocabulary(config).index(2)] == 2.0
