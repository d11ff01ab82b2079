"""A worker's file of results, written while the evaluation runs, so that memory does not grow with the number of users."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.storage.files import renamed_when_whole
from trainer.storage.parquet import parquet_writer

GROUP_BYTES = 16 << 20  # rows held before they are written
MERGED_BYTES = 256 << 20  # of the row groups that the driver holds at a time, one of each worker


class PartWriter:
    """A writer of tables with the same columns, as row groups of some MB."""

    def __init__(self, path: Path, group_bytes: int, options: Mapping[str, Any]) -> None:
        self._path = path
        self._group_bytes = group_bytes
        self._options = options
        self._writer: pq.ParquetWriter | None = None
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self._notes: dict[str, str] = {}

    def note(self, name: str, value: str) -> None:
        """Store a value in the metadata of the file."""
        self._notes[name] = value

    def add(self, table: pa.Table) -> None:
        """Append the rows of a table."""
        # The type of a column without values may differ: a worker's last batches can have no users.
        if table.num_rows or not self._tables:
            self._tables.append(table)
            self._bytes += table.nbytes
        if self._bytes >= self._group_bytes:
            self._write()

    def close(self) -> None:
        """Write the rows that are held, and end the file."""
        if self._tables:
            self._write()
        if self._writer is not None:
            self._writer.add_key_value_metadata(self._notes)
            self._writer.close()

    def _write(self) -> None:
        filled = [table for table in self._tables if table.num_rows]
        if filled or self._writer is None:
            rows = pa.concat_tables(filled or self._tables[:1])
            if self._writer is None:
                self._writer = parquet_writer(self._path, rows.schema, **self._options)
            self._writer.write_table(rows)
        self._tables = []
        self._bytes = 0


@contextmanager
def part_writer(path: Path, num_parts: int = 1, **options: Any) -> Iterator[PartWriter]:
    """Provide a writer of a file, which appears whole at the end or, after an error, not at all.

    Args:
        path: the file.
        num_parts: number of files that are merged later. With many, their row groups are smaller.
        options: those of pyarrow's writer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(path) as temporary:
        writer = PartWriter(temporary, min(GROUP_BYTES, MERGED_BYTES // num_parts), options)
        try:
            yield writer
        finally:
            writer.close()
