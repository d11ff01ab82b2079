"""Faults of logs: rows 15, 16 and 18 of the fault matrix. Every fault is refused by name, or counted within its budget."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.prepared import (
    config_at,
    made,
    refusal,
    rejected_rows,
    rows_by_user,
    vocabulary,
    write_events,
    write_table,
)
from trainer.data.dataset.manifest import read_manifest

ray_tests = pytest.mark.usefixtures("ray_session")

EVENTS = [(user, user * 10 + n, n) for n in range(20) for user in range(1, 9)]
PLAIN: dict[str, Any] = {"use_dictionary": False, "compression": "none"}


def write_three_files(tmp_path: Path, **options: Any) -> Path:
    """Write a, b and c; b, which will be damaged, has several row groups, so that it is read in several chunks."""
    for name, first in (("a", 0), ("b", 56), ("c", 112)):
        write_events(
            tmp_path / f"logs/{name}.parquet", EVENTS[first : first + 56], row_group_size=14, **PLAIN, **options
        )
    return tmp_path / "logs/b.parquet"


# Row 16: bad rows


@ray_tests
def test_row_16_bad_rows_are_counted_by_reason_within_a_budget(tmp_path: Path) -> None:
    nan, beyond = float("nan"), 2**63
    good = [(user, item, time, 1.0) for user, item, time in EVENTS]
    bad: dict[str, list[tuple[Any, ...]]] = {
        "null user": [(None, 1, 1, 1.0)],
        "null item": [(1, None, 1, 1.0), (1, None, 2, 1.0)],
        "null time": [(1, 1, None, 1.0)],
        "null y": [(1, 1, 1, None), (1, 1, 1, nan), (1, 1, 1, float("inf")), (1, 1, 1, float("-inf"))],
        "user beyond int64": [(beyond, 1, 1, 1.0)],
        "item beyond int64": [(1, beyond, 1, 1.0)],
        "time too early": [(1, 1, 0, 1.0)],
        "time too late": [(1, 1, 10**9, 1.0), (1, 1, 2**62, 1.0)],
    }
    good = [(user, item, time + 1, y) for user, item, time, y in good]
    rows = good[::-1]  # unsorted, which is no fault
    for value in bad.values():
        rows[len(rows) // 2 : len(rows) // 2] = value
    users, items, times, labels = zip(*rows, strict=True)
    write_table(
        tmp_path / "logs/a.parquet",
        {"user_id": pa.array(users, pa.uint64()), "item_id": pa.array(items, pa.uint64()), "time": times, "y": labels},
    )
    counts = {reason: len(value) for reason, value in bad.items()}
    logs = {"labels": ["y"], "history_label": "y", "earliest_time": 1, "latest_time": 100}
    message = refusal(config_at(tmp_path, logs=logs))
    for reason, count in counts.items():
        assert f"{count} {reason}" in message
    for part in (
        f"{sum(counts.values())} of {len(rows)}",
        "a.parquet row",
        "logs.max_rejected_fraction",
        'logs.user = "user_id"',
    ):
        assert part in message
    assert not (tmp_path / "dataset").exists()

    config = config_at(tmp_path, logs={**logs, "max_rejected_fraction": 0.1})
    manifest = made(config)
    assert manifest.counts.rejected == dict(sorted(counts.items()))
    assert manifest.counts.rows_read == len(rows) == manifest.counts.rows_kept + sum(counts.values())
    shown = {(user, *i[:2], i[3]["y"]) for user, row in rows_by_user(config).items() for i in row.impressions}
    assert shown == set(good)
    for name, row, reason in rejected_rows(config):
        assert (name, repr(rows[row]) in map(repr, bad[reason])) == ("a.parquet", True)


@ray_tests
def test_row_16_negative_ids_are_bad_rows_unless_allowed(tmp_path: Path) -> None:
    rows = [*EVENTS, (-1, 1, 1), (1, -5, 1), (-(2**63), 1, 1), (1, -(2**63), 1)]
    write_events(tmp_path / "logs/a.parquet", rows)
    message = refusal(config_at(tmp_path))
    for part in ("2 negative user", "2 negative item", 'logs.negative_ids = "keep"'):
        assert part in message
    rejected = made(config_at(tmp_path, logs={"max_rejected_fraction": 0.1})).counts.rejected
    assert rejected == {"negative item": 2, "negative user": 2}
    config = config_at(tmp_path, "kept", logs={"negative_ids": "keep"})
    assert made(config).counts.rejected == {}
    assert {(user, *event) for user, row in rows_by_user(config).items() for event in row.history} == set(rows)
    assert {-5, -(2**63)} < set(vocabulary(config)[1:])


@ray_tests
@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("user_id", pa.array(["1.0", "2.5"]).cast(pa.decimal128(9, 2)), ["row 1", "2.50", "whole number"]),
        ("item_id", pa.array([1.0, 2.5]), ["row 1", "2.5", "whole number"]),
        ("time", pa.array([1.0, float("inf")]), ["row 1", "inf", "whole number"]),
        ("time", pa.array([1, 10**15], pa.timestamp("s")), ["int64", "another unit"]),
        ("time", pa.array([1, 2], pa.time32("s")), ["time32", "timestamp"]),
        ("user_id", pa.array([b"1", b"2"]), ["binary", "an integer or a string"]),
    ],
)
def test_row_16_columns_that_are_no_ids_or_times_are_refused(
    tmp_path: Path, column: str, values: pa.Array, words: list[str]
) -> None:
    columns: dict[str, Any] = {"user_id": [1, 2], "item_id": [1, 2], "time": [1, 2]}
    write_table(tmp_path / "logs/a.parquet", {**columns, column: values})
    message = refusal(config_at(tmp_path))
    for word in ("a.parquet", f'"{column}"', f"logs.{column.removesuffix('_id')}", *words):
        assert word in message


@ray_tests
def test_row_16_too_long_and_empty_histories_and_duplicates(tmp_path: Path) -> None:
    events = (
        [("long", n, n) for n in range(500)] + [(f"u{n}", n, n) for n in range(9)] + [("b", n, n) for n in range(3)] * 2
    )
    write_events(tmp_path / "logs/a.parquet", events)
    config = config_at(tmp_path, logs={"max_events_per_user": 50})
    manifest = made(config)
    assert manifest.counts.rejected == {"duplicate": 3, "over max_events_per_user": 450}
    rows = rows_by_user(config)
    assert rows["long"].history == [(n, n) for n in range(450, 500)]
    assert (manifest.counts.users_without_targets, len(rows["u1"].history)) == (10, 1)


@ray_tests
def test_row_16_bad_rows_of_items_and_users_have_a_budget_of_their_own(tmp_path: Path) -> None:
    write_events(tmp_path / "logs/a.parquet", EVENTS)
    items = write_table(tmp_path / "items.parquet", {"item_id": [10, 11, None], "p": [1.0, 2.0, 3.0]})
    users = write_table(tmp_path / "users.parquet", {"user_id": [1, -2, 2], "p": [1.0, 2.0, 3.0]})
    feature = {"features": {"p": {"kind": "numeric"}}}
    for name, path, words in (
        ("items", items, ["1 of 3", "1 null item", 'logs.items.item = "item_id"']),
        ("users", users, ["1 of 3", "1 negative user", 'logs.users.user = "user_id"']),
    ):
        message = refusal(config_at(tmp_path, logs={name: {"path": str(path), **feature}}))
        for word in (str(path), *words):
            assert word in message
    logs = {
        "items": {"path": str(items), **feature},
        "users": {"path": str(users), **feature},
        "max_rejected_fraction": 0.4,
    }
    counts = made(config_at(tmp_path, logs=logs)).counts
    assert (counts.rejected, counts.catalogue_rejected) == ({}, {"negative user": 1, "null item": 1})


# Row 18: schema drift

SOURCES: dict[str, dict[str, Any]] = {
    "logs": {"user_id": [1] * 9, "item_id": range(9), "time": range(9), "y": [1.0] * 9, "color": ["a"] * 9},
    "history": {"user_id": [1], "item_id": [20], "time": [0]},
    "items": {"item_id": [1, 2], "price": [1.0, 2.0]},
    "users": {"user_id": [1, 2], "city": ["x", "y"]},
}
DRIFTS = [
    (source, column, setting, kind)
    for source, column, setting in [
        ("logs", "item_id", "logs.item"), ("logs", "y", "logs.labels"), ("logs", "color", "logs.features.color"),
        ("history", "time", "logs.history.time"), ("items", "item_id", "logs.items.item"),
        ("items", "price", "logs.items.features.price"), ("users", "city", "logs.users.features.city"),
    ]
    for kind in ("missing", "renamed", "other type", "twice")
]  # fmt: skip


def config_of_all(tmp_path: Path) -> Any:
    return config_at(
        tmp_path,
        logs={
            "labels": ["y"],
            "features": {"color": {"kind": "categorical"}},
            "history": {"path": str(tmp_path / "history")},
            "items": {"path": str(tmp_path / "items"), "features": {"price": {"kind": "numeric"}}},
            "users": {"path": str(tmp_path / "users"), "features": {"city": {"kind": "categorical"}}},
        },
    )


@ray_tests
@pytest.mark.parametrize(("source", "column", "setting", "kind"), DRIFTS)
def test_row_18_a_drifting_schema_is_refused_with_file_and_column(
    tmp_path: Path, source: str, column: str, setting: str, kind: str
) -> None:
    for name, columns in SOURCES.items():
        for file in "ab":
            write_table(tmp_path / name / f"{file}.parquet", {n: list(v) for n, v in columns.items()})
    actual = pq.read_table(tmp_path / source / "b.parquet")
    place = actual.column_names.index(column)
    match kind:
        case "missing":
            actual = actual.remove_column(place)
        case "renamed":
            actual = actual.rename_columns([n + "_new" if n == column else n for n in actual.column_names])
        case "other type":
            other = pa.int32() if actual.schema.field(column).type != pa.string() else pa.binary()
            actual = actual.set_column(place, column, actual.column(column).cast(other))
        case "twice":
            actual = actual.append_column(column, actual.column(column))
    pq.write_table(actual, tmp_path / source / "b.parquet")
    message = refusal(config_of_all(tmp_path))
    for part in (str(tmp_path / source / "b.parquet"), f'"{column}"', setting):
        assert part in message
    if kind == "renamed" and column != "y":  # a single letter is near to nothing
        assert f'did you mean "{column}_new"?' in message
    assert not (tmp_path / "dataset").exists()


@ray_tests
def test_row_18_the_order_of_columns_means_nothing(tmp_path: Path) -> None:
    for order in (1, -1):
        for name, columns in SOURCES.items():
            reordered = list(columns)[::order]
            extra = {f"extra {order}": [0] * len(columns[reordered[0]])}
            write_table(tmp_path / name / "a.parquet", {n: list(columns[n]) for n in reordered} | extra)
        made(config_of_all(tmp_path))
        (tmp_path / "dataset").rename(tmp_path / f"dataset{order}")
    one, other = (read_manifest(tmp_path / f"dataset{order}") for order in (1, -1))
    assert one.digest == other.digest
    assert one.counts == other.counts
