"""Arrays and tables in temporary files: their values, and that the files have no name."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.errors import UserError
from trainer.storage.mapped import ArrayWriter, mapped_table

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


def test_an_array_without_pieces_has_its_type() -> None:
    assert ArrayWriter(pa.int64()).array().equals(pa.array([], pa.int64()))


def test_text_beyond_the_limit_of_arrow_is_refused(tmp_path: Path) -> None:
    writer = ArrayWriter(pa.string(), tmp_path, 0)
    writer._num_bytes = np.iinfo(np.int32).max - 2
    with pytest.raises(UserError, match="longer than 2 GB"):
        writer.add(pa.array(["abc"]))


def test_a_table_has_its_rows_and_no_memory_of_arrow(tmp_path: Path) -> None:
    numbers = np.arange(200_000)
    table = pa.table({"number": numbers, "text": [str(number) for number in range(200_000)]}).combine_chunks()
    before = pa.total_allocated_bytes()
    mapped = mapped_table(table, tmp_path)
    assert mapped.equals(table)
    assert mapped.column("number").num_chunks == 1
    assert pa.total_allocated_bytes() - before < 100_000
    assert list(tmp_path.iterdir()) == []
