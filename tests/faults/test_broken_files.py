"""Broken files of logs: row 15 of the fault matrix. A broken file is refused by name, or left out as a whole."""

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import cluster.data.prepare
from cluster.ray_cluster.task_pool import TaskLimit
from tests.faults.test_logs import EVENTS, PLAIN, ray_tests, write_three_files
from tests.support.prepared import (
    config_at,
    made,
    refusal,
    rows_by_user,
    write_events,
    write_table,
)
from trainer.data.logs.config import LogsConfig
from trainer.data.logs.contract import find_inputs, inspect_inputs
from trainer.data.logs.reading import Rules, read_chunk
from trainer.data.prepare.read_pass import read_task
from trainer.errors import UserError


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.data.prepare.inspect_inputs", partial(inspect_inputs, rows_per_chunk=20))


def between_header_and_data(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any], after_tasks: int = 0) -> None:
    """Do something when the first pass has begun, or has finished some tasks."""
    original = cluster.data.prepare.run_tasks

    def hooked(task: Any, argument: Any, numbers: list[int], limit: TaskLimit) -> Iterator[tuple[int, Any]]:
        if task is not read_task:
            yield from original(task, argument, numbers, limit)
            return
        yield from original(task, argument, numbers[:after_tasks], TaskLimit(1))
        act()
        yield from original(task, argument, numbers[after_tasks:], limit)

    monkeypatch.setattr("cluster.data.prepare.run_tasks", hooked)


def flip_a_bit_of(file: Path, *values: int) -> None:
    """Flip a bit of the first of these values, which follow one another in the file."""
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
    "rewritten in the same way": rewrite_alike,
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
    actual = rows_by_user(config_at(tmp_path, "kept"))
    rest = EVENTS[:56] + EVENTS[112:]
    assert {(user, *event) for user, row in actual.items() for event in row.history} == set(rest)
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
def test_row_15_a_source_without_readable_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_row_15_a_skipped_file_is_added_once_it_is_repaired(tmp_path: Path) -> None:
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
def test_row_15_wrong_content_does_not_count_as_an_unreadable_file(tmp_path: Path) -> None:
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
        actual = outcome_of(file)
        detected += actual is None
        assert actual in (None, events) or not checksums
    assert detected > 150 or not checksums  # a few bits mean nothing, such as those of statistics in headers


@pytest.mark.parametrize("seed", [0, 1203, 1300])  # the last two: column names that are no text
def test_row_15_flipped_bits_and_truncation_never_crash(tmp_path: Path, seed: int) -> None:
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
    """Return the events of a file, or None if it is refused by name; anything else is an error of the test."""
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
    """Return places of the bytes of all column chunks: headers of pages, dictionaries, values."""
    places: list[int] = []
    metadata = pq.ParquetFile(file).metadata
    for number in range(metadata.num_columns):
        column = metadata.row_group(0).column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        places += range(start, start + column.total_compressed_size)
    return places
