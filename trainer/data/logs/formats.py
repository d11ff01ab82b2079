"""File formats of the logs behind one protocol, so that reading and checking do not depend on the format.

To add a format, write its reader here, register it in _READERS, and name it with its endings in
trainer/data/logs/format_names.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.logs.columns import Column
from trainer.data.logs.config import TextConfig
from trainer.data.logs.files import InputFile, explaining
from trainer.data.logs.format_names import FormatName
from trainer.data.logs.text_files import open_text, read_names
from trainer.data.logs.text_values import typed_text
from trainer.data.logs.values import BlockLocation, plain

ROWS_PER_BLOCK = 1 << 20
CSV_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Header:
    """Columns of a file. The columns of text files are text."""

    schema: pa.Schema
    # Decoded at once, because the names in a damaged header may not be text.
    names: tuple[str, ...]
    # Rows of each Parquet row group; None for text files, because their header does not list them.
    rows_of_groups: tuple[int, ...] | None


class FileReader(Protocol):
    """A reader of one file format."""

    # Whether files name the types of their columns. If not, all values are scanned to find them.
    has_types: bool

    def read_header(self, file: InputFile, text: TextConfig, setting: str) -> Header:
        """Read the columns of a file. Raises UnreadableFileError.

        Args:
            file: the file.
            text: the format of text files.
            setting: the name of that setting, for messages.
        """

    def batches(
        self, file: InputFile, columns: Sequence[Column], row_groups: tuple[int, ...]
    ) -> Iterator[pa.RecordBatch]:
        """Yield record batches of the columns, by their names in the file. Raises UnreadableFileError.

        Args:
            file: the file.
            columns: the columns to read.
            row_groups: the row groups to read, in formats that have them.
        """

    def typed(self, values: pa.Array, column: Column, agreed: pa.DataType, where: BlockLocation) -> pa.Array:
        """Convert a column of a batch to the agreed type. Raises UserError if a value does not fit.

        Args:
            values: the values, as `batches` yields them.
            column: the column.
            agreed: its type in the contract.
            where: location of the batch.
        """


class ParquetReader:
    """Reader of Parquet files: row groups with typed columns."""

    has_types = True

    def read_header(self, file: InputFile, text: TextConfig, setting: str) -> Header:
        """Read schema and row counts from the footer."""
        with explaining(file), open_parquet(file) as parquet:
            metadata = parquet.metadata
            rows = tuple(metadata.row_group(k).num_rows for k in range(metadata.num_row_groups))
            return Header(parquet.schema_arrow, tuple(parquet.schema_arrow.names), rows)

    def batches(
        self, file: InputFile, columns: Sequence[Column], row_groups: tuple[int, ...]
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of the row groups, read in one thread: a task has one CPU."""
        with open_parquet(file) as parquet:
            yield from parquet.iter_batches(ROWS_PER_BLOCK, row_groups, _names(columns), use_threads=False)

    def typed(self, values: pa.Array, column: Column, agreed: pa.DataType, where: BlockLocation) -> pa.Array:
        """Convert values to their plain type, which loses nothing."""
        return plain(values, column, agreed, where)


class TextReader:
    """Reader of text files (CSV, TSV): a header line, and rows of text."""

    has_types = False

    def read_header(self, file: InputFile, text: TextConfig, setting: str) -> Header:
        """Read the names of the columns from the first line."""
        names = read_names(file, text, setting)
        return Header(pa.schema([(name, pa.string()) for name in names]), names, None)

    def batches(
        self, file: InputFile, columns: Sequence[Column], row_groups: tuple[int, ...]
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of text columns. Text files have no row groups, so the whole file is read."""
        text = columns[0].text
        setting = columns[0].text_setting
        with open_text(file, text, setting, CSV_BLOCK_BYTES, _names(columns)) as (_, reader):
            yield from reader

    def typed(self, values: pa.Array, column: Column, agreed: pa.DataType, where: BlockLocation) -> pa.Array:
        """Parse text as the agreed type."""
        return typed_text(values, column, agreed, where)


_READERS: dict[FormatName, FileReader] = {"parquet": ParquetReader(), "csv": TextReader(), "tsv": TextReader()}


def reader_of(file: InputFile) -> FileReader:
    """Return the reader for the format of a file."""
    return _READERS[file.format]


def _names(columns: Sequence[Column]) -> list[str]:
    return list(dict.fromkeys(column.source for column in columns))


def open_parquet(file: InputFile) -> pq.ParquetFile:
    """Open a Parquet file; damaged pages are found by their checksums, where the file has them."""
    return pq.ParquetFile(file.filesystem().open_input_file(file.path), page_checksum_verification=True)
