"""Faults of logs: rows 15, 16 and 18 of the fault matrix. Every fault is refused by name, or counted within its budget."""

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster.data.prepare
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
from trainer.data.logs.config import LogsConfig
from trainer.data.logs.contract import find_inputs, inspect_inputs
from trainer.data.logs.reading import Rules, read_chunk
from trainer.data.prepare.read_pass import read_task
from trainer.errors import UserError

ray_tests = pytest.mark.usefixtures("ray_session")

EVENTS = [(user, user * 10 + n, n) for n in range(20) for user in range(1, 9)]
PLAIN: dict[str, Any] = {"use_dictionary": False, "compression": "none"}


def write_three_files(tmp_path: Path, **options: Any) -> Path:
    """a, b and c, of which b is the one to be damaged; of several row groups, so that it is read in several chunks."""
    for name, first in (("a", 0), ("b", 56), ("c", 112)):
        write_events(
            tmp_path / f"logs/{name}.parquet", EVENTS[first : first + 56], row_group_size=14, **PLAIN, **options
        )
    return tmp_path / "logs/b.parquet"


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.data.prepare.inspect_inputs", partial(inspect_inputs, rows_per_chunk=20))


def between_header_and_data(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any], after_tasks: int = 0) -> None:
    """Do something when the first pass has begun, or has finished some tasks."""
    original = cluster.data.prepare.run_tasks

    def hooked(task: Any, argument: Any, numbers: list[int], limit: int) -> Iterator[tuple[int, Any]]:
        if task is not read_task:
            yield from original(task, argument, numbers, limit)
            return
        yield from original(task, argument, numbers[:after_tasks], 1)
        act()
        yield from original(task, argument, numbers[after_tasks:], limit)

    monkeypatch.setattr("cluster.data.prepare.run_tasks", hooked)


def flip_a_bit_of(file: Path, *values: int) -> None:
    """Of the first of these values, which follow one another in the file."""
    content = bytearray(file.read_bytes())
    content[content.index(b"".join(value.to_bytes(8, "little") for value in values))] ^= 4
    file.write_bytes(content)


def rewrite(file: Path) -> None:
    write_table(file, {"x": [1, 2]})


def rewrite_alike(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table, file, row_group_size=14, **PLAIN)
    os.utime(file, ns=(1, 1))


# Row 15: files

BEFORE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "without end": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "something else": lambda file: file.write_text("user_id,item_id,time\n1,2,3\n"),
    "bit flipped in the data": lambda file: flip_a_bit_of(file, 27, 37),
    "bit flipped in the magic": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"2"),
}
MEANWHILE: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "rewritten with other columns": rewrite,
    "rewritten alike": rewrite_alike,
    "truncated meanwhile": BEFORE["truncated"],
    "emptied": BEFORE["empty"],
}


@ray_tests
@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("fault", [*BEFORE, *MEANWHILE])
def test_row_15_a_broken_file_is_refused_or_left_out_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    broken = write_three_files(tmp_path, write_page_checksum=True)
    good = broken.read_bytes()

    def prepared_with(dataset: str, **logs: Any) -> Any:
        broken.write_bytes(good)
        with monkeypatch.context() as patched:
            if fault in BEFORE:
                BEFORE[fault](broken)
            else:  # when two of its three chunks were read, and found good
                between_header_and_data(patched, lambda: MEANWHILE[fault](broken), after_tasks=5)
            config = config_at(tmp_path, dataset, logs=logs)
            return made(config) if logs else refusal(config)

    message = prepared_with("refused")
    assert str(broken) in message
    assert "logs.path" in message or "changed or removed" in message
    assert not (tmp_path / "refused").exists()

    manifest = prepared_with("kept", max_unreadable_files=1)
    found = rows_by_user(config_at(tmp_path, "kept"))
    rest = EVENTS[:56] + EVENTS[112:]
    assert {(user, *event) for user, row in found.items() for event in row.history} == set(rest)
    assert (manifest.counts.rows_read, manifest.counts.rows_kept, manifest.counts.rejected) == (104, 104, {})
    causes = {Path(file["path"]).name: file.get("unreadable", "") for file in manifest.source["files"]}
    assert [name for name, cause in causes.items() if cause] == ["b.parquet"]
    assert str(broken) in causes["b.parquet"]
    assert [file["rows"] for file in manifest.source["files"]] == [56, 0, 48]


@ray_tests
def test_row_15_more_broken_files_than_allowed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_three_files(tmp_path)
    (tmp_path / "logs/a.parquet").write_bytes(b"no")  # found by its header, the other one while reading
    between_header_and_data(monkeypatch, (tmp_path / "logs/b.parquet").unlink)
    message = refusal(config_at(tmp_path, logs={"max_unreadable_files": 1}))
    for part in ("2 files cannot be read", "allows 1", "a.parquet"):
        assert part in message
    for name in "abc":
        (tmp_path / f"logs/{name}.parquet").write_bytes(b"no")
    message = refusal(config_at(tmp_path, logs={"max_unreadable_files": 3}))
    assert "none of the files of logs can be read" in message


@ray_tests
def test_row_15_when_no_file_of_a_source_is_left_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_events(tmp_path / "logs/a.parquet", EVENTS)
    items = write_table(tmp_path / "items.parquet", {"item_id": [1], "price": [1.0]})
    catalogue = {"path": str(items), "features": {"price": {"kind": "numeric"}}}
    for gone in (file, items):
        content = gone.read_bytes()
        with monkeypatch.context() as patched:
            between_header_and_data(patched, gone.unlink)
            message = refusal(config_at(tmp_path, logs={"max_unreadable_files": 1, "items": catalogue}))
        assert str(gone) in message
        gone.write_bytes(content)


@ray_tests
def test_row_15_a_file_left_out_is_taken_in_when_it_is_mended(tmp_path: Path) -> None:
    write_three_files(tmp_path)
    broken = tmp_path / "logs/c.parquet"
    good = broken.read_bytes()
    BEFORE["truncated"](broken)
    config = config_at(tmp_path, logs={"max_unreadable_files": 1})
    first = made(config)
    assert made(config) == first  # as it was: not tried again
    content = broken.read_bytes()
    broken.unlink()
    assert made(config) == first  # nor missed
    write_events(tmp_path / "logs/d.parquet", [(99, 5, 100)])
    assert made(config).generation == 1
    broken.write_bytes(content)
    message = refusal(config)
    for part in ("none of the files of logs can be read", "c.parquet", "truncated"):
        assert part in message
    broken.write_bytes(good)
    manifest = made(config)
    assert manifest.generation == 2
    assert [(Path(f["path"]).name, f["rows"], f["generation"]) for f in manifest.source["files"]] == [
        ("a.parquet", 56, 0), ("b.parquet", 56, 0), ("c.parquet", 48, 2), ("d.parquet", 1, 1),
    ]  # fmt: skip
    assert not any("unreadable" in file for file in manifest.source["files"])
    assert (manifest.counts.rows_kept, manifest.counts.rejected) == (161, {})


@ray_tests
def test_row_15_a_wrong_content_is_no_unreadable_file(tmp_path: Path) -> None:
    write_events(tmp_path / "logs/a.parquet", [(u, i, float(t)) for u, i, t in EVENTS])
    write_events(tmp_path / "logs/b.parquet", [(1, 2, 3.5)])
    message = refusal(config_at(tmp_path, logs={"max_unreadable_files": 2}))
    for part in ("b.parquet row 0", "3.5", "whole number"):
        assert part in message


@pytest.mark.parametrize("options", [{}, PLAIN, {"compression": "zstd", "use_dictionary": False}])
@pytest.mark.parametrize("checksums", [True, False])
def test_row_15_a_flipped_bit_of_a_column_is_detected_by_page_checksums(
    tmp_path: Path, checksums: bool, options: dict[str, Any]
) -> None:
    """Without checksums what is detected is what it is; but it is refused by name, or read, and never a crash."""
    choose = random.Random(1)
    file = write_events(tmp_path / "a.parquet", EVENTS, write_page_checksum=checksums, **options)
    good, events, places = file.read_bytes(), outcome_of(file), data_of_columns(file)
    detected = 0
    for _ in range(200):
        content = bytearray(good)
        content[choose.choice(places)] ^= 1 << choose.randrange(8)
        file.write_bytes(content)
        found = outcome_of(file)
        detected += found is None
        assert found in (None, events) or not checksums
    assert detected > 150 or not checksums  # a few bits mean nothing, such as those of statistics in headers


@pytest.mark.parametrize("seed", [0, 1203, 1300])  # the last two: column names that are no text
def test_row_15_whatever_is_flipped_or_cut_off_there_is_no_crash(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    file = write_events(tmp_path / "a.parquet", EVENTS, write_page_checksum=True)
    good = file.read_bytes()
    for _ in range(60):
        content = bytearray(good[: choose.choice([len(good), choose.randrange(len(good))])])
        for _ in range(choose.choice([0, 1, 5])):
            if content:
                content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
        file.write_bytes(content)
        outcome_of(file)


def outcome_of(file: Path) -> list[Any] | None:
    """The events of a file, or None if it is refused by name; anything else is an error of the test."""
    logs = LogsConfig(path=str(file))
    try:
        inputs = inspect_inputs(find_inputs(logs), logs)
        blocks = [b for chunk in inputs.chunks for b in read_chunk(chunk, inputs.contracts["logs"], Rules())]
    except UserError as error:
        if str(file) not in str(error):
            raise
        return None
    return [row for block in blocks for row in block.events.to_pylist()]


def data_of_columns(file: Path) -> list[int]:
    """Places of the bytes of all column chunks: headers of pages, dictionaries, values."""
    places: list[int] = []
    metadata = pq.ParquetFile(file).metadata
    for number in range(metadata.num_columns):
        column = metadata.row_group(0).column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        places += range(start, start + column.total_compressed_size)
    return places


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
    for found in bad.values():
        rows[len(rows) // 2 : len(rows) // 2] = found
    users, items, times, labels = zip(*rows, strict=True)
    write_table(
        tmp_path / "logs/a.parquet",
        {"user_id": pa.array(users, pa.uint64()), "item_id": pa.array(items, pa.uint64()), "time": times, "y": labels},
    )
    counts = {reason: len(found) for reason, found in bad.items()}
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
def test_row_16_negative_ids_are_bad_unless_they_are_meant(tmp_path: Path) -> None:
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
    found = pq.read_table(tmp_path / source / "b.parquet")
    place = found.column_names.index(column)
    match kind:
        case "missing":
            found = found.remove_column(place)
        case "renamed":
            found = found.rename_columns([n + "_new" if n == column else n for n in found.column_names])
        case "other type":
            other = pa.int32() if found.schema.field(column).type != pa.string() else pa.binary()
            found = found.set_column(place, column, found.column(column).cast(other))
        case "twice":
            found = found.append_column(column, found.column(column))
    pq.write_table(found, tmp_path / source / "b.parquet")
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
