"""What the reader of row groups owes when files are damaged, or are not those that were prepared: an error that says where."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.datasets import tiny_dataset
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.errors import UserError

PART = "part-000-00001.parquet"
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path, tiny_dataset(tmp_path)


def reader_of(folder: Path, manifest: Manifest) -> RowGroupReader:
    return RowGroupReader(folder, manifest, ColumnSelection(users=True, times=True), cache_bytes=0)


def read_all(reader: RowGroupReader) -> None:
    for group in range(len(reader.group_rows)):
        reader.read([group])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def rewrite(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink, rewrite])
def test_a_damaged_part_is_named_before_the_first_step(tiny, damage):
    damage(tiny[0] / PART)
    with pytest.raises(UserError, match=PART):
        reader_of(*tiny).check_files()


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink, rewrite])
def test_a_part_damaged_in_use_is_named(tiny, damage):
    reader = reader_of(*tiny)
    reader.check_files()
    damage(tiny[0] / PART)
    with pytest.raises(UserError, match=PART):
        read_all(reader)


def test_a_part_rewritten_with_the_same_size_is_named(tiny):
    reader = reader_of(*tiny)
    read_all(reader)
    content = (tiny[0] / PART).read_bytes()
    (tiny[0] / "new").write_bytes(content)
    (tiny[0] / "new").replace(tiny[0] / PART)
    with pytest.raises(UserError, match=rf"{PART}.*rewritten while in use"):
        read_all(reader)


@pytest.mark.parametrize("column", ["item", "time"])
def test_a_flipped_bit_is_found_and_its_row_group_named(tiny, column):
    folder, manifest = tiny
    metadata = pq.ParquetFile(folder / PART).metadata
    place = next(
        n for n in range(metadata.num_columns) if metadata.row_group(2).column(n).path_in_schema.startswith(column)
    )
    actual = metadata.row_group(2).column(place)
    content = bytearray((folder / PART).read_bytes())
    content[actual.data_page_offset + actual.total_compressed_size // 2] ^= 4
    (folder / PART).write_bytes(content)
    reader = reader_of(folder, manifest)
    with pytest.raises(UserError, match=f"{PART}, row group 2"):
        read_all(reader)


def without_time(table: pa.Table) -> pa.Table:
    return table.drop_columns(["time"])


def renamed(table: pa.Table) -> pa.Table:
    return table.rename_columns({"time": "moment"})


def retyped(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.schema.get_field_index("time"), "time", table.column("time").cast(pa.list_(pa.float64()))
    )


@pytest.mark.parametrize("change", [without_time, renamed, retyped])
def test_another_schema_is_refused_before_the_first_step_with_its_column(tiny, change):
    folder, manifest = tiny
    _rewritten(folder, change)
    with pytest.raises(UserError, match=PART) as caught:
        reader_of(folder, _with_size(folder, manifest)).check_files()
    assert "'time'" in str(caught.value)


def test_the_order_of_columns_does_not_matter(tiny):
    folder, manifest = tiny
    _rewritten(folder, lambda table: table.select(table.column_names[::-1]))
    reader = reader_of(folder, _with_size(folder, manifest))
    reader.check_files()
    read_all(reader)


def _rewritten(folder: Path, change: Change) -> None:
    """Write a part of the same row groups."""
    file = pq.ParquetFile(folder / PART)
    groups = [change(file.read_row_group(number)) for number in range(file.num_row_groups)]
    with pq.ParquetWriter(folder / PART, groups[0].schema, write_page_checksum=True) as writer:
        for group in groups:
            writer.write_table(group)


def _with_size(folder: Path, manifest: Manifest) -> Manifest:
    """Return a manifest that agrees with the size of the file, so that its content is read."""
    for part in manifest.parts:
        object.__setattr__(part, "num_bytes", (folder / part.path).stat().st_size)
    return manifest
