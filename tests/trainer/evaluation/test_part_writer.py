"""A worker's file of results: all rows in order, some MB at a time, whole or absent."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.evaluation import part_writer as module
from trainer.evaluation.part_writer import part_writer


def table_of(first: int, size: int) -> pa.Table:
    users = pa.array([f"user {n}" for n in range(first, first + size)]) if size else pa.nulls(0)
    return pa.table({"row_id": np.arange(first, first + size), "user": users})


@pytest.mark.parametrize("sizes", [[5, 3, 0, 0], [0, 4, 0, 2], [0, 0], [7]], ids=str)
@pytest.mark.parametrize("group_bytes", [1, 1 << 20])
def test_rows_are_written_in_order_whatever_batches_are_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], group_bytes: int
) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", group_bytes)
    with part_writer(tmp_path / "parts" / "rank-0.parquet") as writer:
        for number, size in enumerate(sizes):
            writer.add(table_of(sum(sizes[:number]), size))
    written = pq.ParquetFile(tmp_path / "parts" / "rank-0.parquet")
    assert written.read().column("row_id").to_pylist() == list(range(sum(sizes)))
    if sum(sizes):
        assert written.read().column("user").to_pylist() == [f"user {n}" for n in range(sum(sizes))]
        assert written.num_row_groups == (len([size for size in sizes if size]) if group_bytes == 1 else 1)


def test_rows_held_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", 4 * table_of(0, 50).nbytes)
    held = []
    with part_writer(tmp_path / "rank-0.parquet") as writer:
        for number in range(40):
            writer.add(table_of(50 * number, 50))
            held.append(sum(table.nbytes for table in writer._tables))
    assert max(held) < 5 * table_of(0, 50).nbytes


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with part_writer(tmp_path / "rank-0.parquet") as writer:
            writer.add(table_of(0, 3))
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_row_groups_are_smaller_if_many_files_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver holds a row group of each."""
    monkeypatch.setattr(module, "MERGED_BYTES", 8 * table_of(0, 50).nbytes)
    with part_writer(tmp_path / "rank-0.parquet", 4) as writer:
        for number in range(40):
            writer.add(table_of(50 * number, 50))
    assert pq.read_metadata(tmp_path / "rank-0.parquet").num_row_groups == 20
