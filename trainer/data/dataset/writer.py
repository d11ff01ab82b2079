"""Writing of the files of a sequence dataset (trainer/data/dataset/manifest.py): parts, cuts, vocabularies, items.

Equal tables give equal bytes. Pages have checksums, because Parquet alone does not detect a flipped bit.
"""

from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.dataset.grouping import Ints
from trainer.data.dataset.hashing import Distinct
from trainer.data.dataset.manifest import Cuts, Part, RowGroup, StoredFile, VocabularyFile
from trainer.storage.files import hash_file
from trainer.storage.parquet import parquet_writer, read_parquet

MIN_ROW_GROUPS = 64  # the training stream shuffles over row groups
MAX_ROWS = 4096
MAX_EVENTS = 2_000_000
NEW_GROUP = 1 << 40  # numbers from here on are provisional


@dataclass(frozen=True)
class OldGroups:
    """The row groups of the dataset in one partition."""

    # Their numbers.
    numbers: tuple[int, ...]
    # (groups + 1,) bounds of their rows.
    bounds: tuple[int, ...]


def write_part(path: Path, rows: pa.Table, partition: int, generation: int, old: OldGroups) -> Part:
    """Write one part. Row groups that are new to the dataset are numbered from NEW_GROUP on; `numbered` renumbers them.

    Args:
        path: the file.
        rows: columns of a part. A row below the last of `old.bounds` continues the group of that row.
        partition: number of the partition.
        generation: number of the append.
        old: row groups that exist already.

    Raises:
        OSError: if the disk is full.
    """
    offsets = _offsets(rows)
    num_continued = 0
    continued: list[tuple[int, int, int]] = []
    if generation:
        row = rows.column("row").to_numpy()
        places = np.searchsorted(row, old.bounds)
        num_continued = int(places[-1])
        continued = [
            (group, first, last)
            for group, (first, last) in zip(old.numbers, pairwise(places.tolist()), strict=True)
            if last > first
        ]
    # An append uses groups as large as the existing ones; otherwise daily appends would create groups of single rows.
    typical_rows = old.bounds[-1] // len(old.numbers) if old.numbers else None
    bounds = [num_continued + bound for bound in row_group_bounds(offsets[num_continued:], typical_rows)]
    created = [(NEW_GROUP + number, first, last) for number, (first, last) in enumerate(pairwise(bounds))]
    groups = [*continued, *created]
    with _writer(path, rows.schema, **_encoding(rows.schema)) as writer:
        for _, first, last in groups:
            writer.write_table(rows.slice(first, last - first), row_group_size=last - first)
    row_groups = tuple(
        RowGroup(num_rows=last - first, num_events=int(offsets[last] - offsets[first]), group=group)
        for group, first, last in groups
    )
    return Part(**vars(stored_file(path)), partition=partition, generation=generation, row_groups=row_groups)


def row_bounds(part: Part | None, old: OldGroups) -> list[int]:
    """Return the bounds of the rows of every row group that a partition has now, including those of `part`."""
    created = [group.num_rows for group in part.row_groups if group.group >= NEW_GROUP] if part else []
    return [*old.bounds, *(old.bounds[-1] + np.cumsum(created, dtype=np.int64)).tolist()]


def numbered(parts: list[Part], first_group: int) -> tuple[Part, ...]:
    """Return the parts of one generation with the final numbers of their new row groups, in the order of the parts."""
    numbers = count(first_group)
    return tuple(
        replace(
            part,
            row_groups=tuple(replace(g, group=next(numbers)) if g.group >= NEW_GROUP else g for g in part.row_groups),
        )
        for part in parts
    )


def write_cuts(path: Path, cuts: tuple[Ints, Ints], bounds: list[int], partition: int) -> Cuts:
    """Write the cuts of all rows of a partition, with one Parquet row group per row group of the dataset.

    Args:
        path: the file.
        cuts: (train_end, validation_end) of all rows.
        bounds: bounds of the rows of each row group.
        partition: number of the partition.
    """
    table = pa.table({"train_end": cuts[0].astype(np.int32), "validation_end": cuts[1].astype(np.int32)})
    with _writer(path, table.schema) as writer:
        for first, last in pairwise(bounds):
            writer.write_table(table.slice(first, last - first), row_group_size=last - first)
    return Cuts(**vars(stored_file(path)), partition=partition)


def stored_file(path: Path) -> StoredFile:
    """Return the manifest's entry of a finished file."""
    return StoredFile(path.name, path.stat().st_size, hash_file(path))


def _offsets(rows: pa.Table) -> Ints:
    """Return the offsets by which rows are cut into groups: of events, plus those of impressions if there are any."""
    offsets: Ints = rows.column("item").combine_chunks().offsets.to_numpy().astype(np.int64)
    if "impression.item" in rows.column_names:
        offsets = offsets + rows.column("impression.item").combine_chunks().offsets.to_numpy()
    return offsets


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return the encoding of columns: dictionaries for ids, differences for times (a third smaller, and faster to read)."""
    moments = [_leaf(field) for field in schema if pa.types.is_list(field.type) and _values(field.type) == pa.int64()]
    others = [_leaf(field) for field in schema if pa.types.is_list(field.type) and _values(field.type) != pa.int64()]
    return {"use_dictionary": others, "column_encoding": dict.fromkeys(moments, "DELTA_BINARY_PACKED")}


def _values(arrow_type: pa.DataType) -> pa.DataType:
    return _values(arrow_type.value_type) if _is_nested(arrow_type) else arrow_type


def _leaf(field: pa.Field) -> str:
    """Return the path that Parquet gives to the values of lists."""
    path = str(field.name)
    arrow_type = field.type
    while _is_nested(arrow_type):
        path = f"{path}.list.element"
        arrow_type = arrow_type.value_type
    return path


def _is_nested(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type))


def row_group_bounds(offsets: Ints, typical_rows: int | None = None) -> list[int]:
    """Return bounds that cut histories into row groups with about equal numbers of rows.

    Every part has 64 row groups, or as many as rows, so the dataset has at least 64 for any number of parts. No group
    has more than 4,096 rows or more than two million events, except for a single longer history.

    Args:
        offsets: offsets of the histories.
        typical_rows: cut into groups of about this many rows instead.
    """
    num_rows = len(offsets) - 1
    few = min(num_rows, MIN_ROW_GROUPS) if typical_rows is None else -(-num_rows // max(1, typical_rows))
    num_groups = max(few, -(-num_rows // MAX_ROWS))
    bounds = (np.arange(num_groups + 1) * num_rows // max(num_groups, 1)).tolist()
    cut = [0]
    for last in bounds[1:]:
        cut.extend(_halved(offsets, cut[-1], last))
    return cut


def write_catalogue(
    path: Path, values: pa.Array, ids: npt.NDArray[np.int32], num_events: Ints, num_train_events: Ints
) -> VocabularyFile:
    """Write the item vocabulary: row k is number k + 1. Column `id` is the id that the model uses (0: unknown)."""
    table = pa.table({"value": values, "id": ids, "num_events": num_events, "num_train_events": num_train_events})
    return write_vocabulary(path, table)


def write_vocabulary(path: Path, table: pa.Table) -> VocabularyFile:
    """Write the values of a table's rows (row k is id k + 1), and return the manifest's entry."""
    with _writer(path, table.schema) as writer:
        writer.write_table(table)
    return VocabularyFile(**vars(stored_file(path)), num_rows=table.num_rows)


def write_sketch(path: Path, distinct: Distinct) -> StoredFile:
    """Write the hashes by which the values of a table are counted."""
    table = pa.table({"hash": distinct.smallest})
    with _writer(path, table.schema) as writer:
        writer.write_table(table)
    return stored_file(path)


def read_sketch(path: Path) -> Distinct:
    """Read the hashes by which the values of a table are counted."""
    return Distinct(read_parquet(path).column("hash").to_numpy())


def write_items(path: Path, table: pa.Table) -> StoredFile:
    """Write the features of items: row k is number k, and row 0 stands for no item."""
    with _writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=65_536)
    return stored_file(path)


def _halved(offsets: Ints, first: int, last: int) -> list[int]:
    if last - first < 2 or offsets[last] - offsets[first] <= MAX_EVENTS:
        return [last]
    middle = (first + last) // 2
    return _halved(offsets, first, middle) + _halved(offsets, middle, last)


def _writer(path: Path, schema: pa.Schema, **encoding: Any) -> pq.ParquetWriter:
    return parquet_writer(path, schema, compression="zstd", write_page_checksum=True, **encoding)
