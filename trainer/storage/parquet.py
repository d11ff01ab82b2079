"""Parquet and Arrow files on local disks and object storages. The functions are those of pyarrow, with a path of either kind."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.storage.objects.paths import ObjectPath
from trainer.storage.objects.streams import translated


def open_parquet(path: Path, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file. Of an object, the ranges of one read are fetched together, several at a time."""
    if not isinstance(path, ObjectPath):
        return pq.ParquetFile(path, **options)
    with translated(path):
        return pq.ParquetFile(path.filesystem.open_input_file(path.key), pre_buffer=True, **options)


def read_parquet(path: Path, **options: Any) -> pa.Table:
    """Read a Parquet file into a table."""
    if not isinstance(path, ObjectPath):
        return pq.read_table(path, **options)
    with translated(path):
        return pq.read_table(path.key, filesystem=path.filesystem, **options)


def write_parquet(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a table as a Parquet file."""
    if not isinstance(path, ObjectPath):
        pq.write_table(table, path, **options)
        return
    with parquet_writer(path, table.schema, **options) as writer:
        writer.write_table(table)


def parquet_writer(path: Path, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """Return a writer of a Parquet file. An object appears when the writer is closed."""
    if not isinstance(path, ObjectPath):
        return pq.ParquetWriter(path, schema, **options)
    path.parent.mkdir()
    with translated(path):
        return pq.ParquetWriter(path.key, schema, filesystem=path.filesystem, **options)


def csv_source(path: Path) -> Any:
    """Return what pyarrow's reader of CSV takes: the path, or the content of an object."""
    return io.BytesIO(path.read_bytes()) if isinstance(path, ObjectPath) else path


@contextmanager
def open_arrow(path: Path) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """Open an Arrow file, of which only the batches that are taken are read."""
    if not isinstance(path, ObjectPath):
        with pa.memory_map(str(path)) as source:  # the batches keep the mapping, not the file, open
            yield pa.ipc.open_file(source)
        return
    with translated(path), path.filesystem.open_input_file(path.key) as source:
        yield pa.ipc.open_file(source)


def parquet_metadata(path: Path) -> pq.FileMetaData:
    """Read the footer of a Parquet file."""
    if not isinstance(path, ObjectPath):
        return pq.read_metadata(path)
    with translated(path):
        return pq.read_metadata(path.key, filesystem=path.filesystem)


def parquet_schema(path: Path) -> pa.Schema:
    """Read the schema of a Parquet file."""
    if not isinstance(path, ObjectPath):
        return pq.read_schema(path)
    with translated(path):
        return pq.read_schema(path.key, filesystem=path.filesystem)
