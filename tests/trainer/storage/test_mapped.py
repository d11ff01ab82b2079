"""Arrays and tables in temporary files: their values, and that the files have no name."""

import errno
import os
import pickle
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pytest

from trainer.errors import UserError
from trainer.storage import mapped
from trainer.storage.mapped import ArrayWriter, StoredArray, mapped_table, mapped_zeros

PIECES = {
    "text": [pa.array(["a", "é", ""]), pa.array(["skipped", "b" * 100, "\uff5a"]).slice(1), pa.array([], pa.string())],
    "integers": [pa.array([1, -2, 3]), pa.array([9, 1 << 60]).slice(1), pa.array([], pa.int64())],
    "short integers": [pa.array([1, 2], pa.int32()), pa.array([], pa.int32()), pa.array([3, 4], pa.int32()).slice(1)],
    "empty text": [pa.array(["", ""])],
    "nothing": [pa.array([], pa.string())],
}


@pytest.mark.parametrize("most_values", [0, 2, 100])
@pytest.mark.parametrize("kind", PIECES)
def test_an_array_has_the_values_that_were_added(tmp_path: Path, kind: str, most_values: int) -> None:
    writer = ArrayWriter(PIECES[kind][0].type, tmp_path, most_values)
    for piece in PIECES[kind] * 3:
        writer.add(piece)
    array = writer.array()
    array.validate(full=True)
    assert array.equals(pa.concat_arrays(PIECES[kind] * 3))
    assert pickle.loads(pickle.dumps(array)).equals(array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", PIECES)
def test_a_stored_array_is_mapped_by_whoever_receives_it(tmp_path: Path, kind: str) -> None:
    array = pa.concat_arrays(PIECES[kind] * 3)
    stored = StoredArray.write(array, tmp_path / "values.arrow")
    received = pickle.loads(pickle.dumps(stored)).array()
    (tmp_path / "values.arrow").unlink()  # the mapping remains
    received.validate(full=True)
    assert received.equals(array)


def test_a_mapped_array_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    stored = StoredArray.write(pa.array(np.arange(100_000)), tmp_path / "values.arrow")
    before = pa.total_allocated_bytes()
    array = stored.array()
    assert pa.total_allocated_bytes() - before < 10_000
    assert array.nbytes == 800_000


def test_an_array_without_pieces_has_its_type() -> None:
    assert ArrayWriter(pa.int64()).array().equals(pa.array([], pa.int64()))


def test_text_beyond_the_limit_of_arrow_is_refused(tmp_path: Path) -> None:
    writer = ArrayWriter(pa.string(), tmp_path, 0)
    writer._num_bytes = np.iinfo(np.int32).max - 2
    with pytest.raises(UserError, match="longer than 2 GB"):
        writer.add(pa.array(["abc"]))


def test_an_error_of_the_disk_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(file: IO[bytes], num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mapped, "reserve_space", no_space)
    monkeypatch.setattr(mapped, "LEAST_BYTES", 0)
    with pytest.raises(OSError, match="No space left") as caught:
        mapped_zeros((3, 4), tmp_path)
    assert caught.value.filename == str(tmp_path)


@pytest.mark.parametrize("least_bytes", [0, 1 << 20])
def test_zeros_can_be_counted_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_bytes: int) -> None:
    monkeypatch.setattr(mapped, "LEAST_BYTES", least_bytes)
    array = mapped_zeros((2, 5), tmp_path)
    array[1, [0, 3]] += [4, 5]
    assert array.tolist() == [[0, 0, 0, 0, 0], [4, 0, 0, 5, 0]]
    assert isinstance(array, np.memmap) == (least_bytes == 0)
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_its_rows_and_no_memory_of_arrow(tmp_path: Path) -> None:
    numbers = np.arange(200_000)
    table = pa.table({"number": numbers, "text": [str(number) for number in range(200_000)]}).combine_chunks()
    before = pa.total_allocated_bytes()
    stored = mapped_table(table, tmp_path)
    assert stored.equals(table)
    assert stored.column("number").num_chunks == 1
    assert pa.total_allocated_bytes() - before < 100_000
    assert list(tmp_path.iterdir()) == []
