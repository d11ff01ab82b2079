"""Event logs: found, held against their contract, cut into chunks, read block by block.

Pure pyarrow; knows nothing of Ray. It keeps one invariant: every row of every file is either handed on, with its user,
item and time as int64 or string, or quarantined with file, row and reason. Nothing is dropped, guessed or cast
silently.

Columns are called user, item and time from here on, whatever the logs call them. Rows are numbered from 0 in their
file, without a header. Times are int64: integers as they stand, timestamps and dates as microseconds since 1970 UTC.
"""

import difflib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from trainer.config import LogsConfig
from trainer.errors import UserError
from trainer.logs.files import InputFile
from trainer.logs.quarantine import SCHEMA as QUARANTINE_SCHEMA
from trainer.logs.quarantine import quarantine_table

ROWS_PER_CHUNK = 1 << 20
CSV_BLOCK_BYTES = 16 << 20
HEADER_BYTES = 1 << 20  # the types of a CSV file are those of its first block of this size
HEADER_THREADS = 16
ROLES = ("user", "item", "time")
REASONS = ("null user", "null item", "null time")


@dataclass(frozen=True)
class InputChunk:
    """What one task reads: row groups of a Parquet file, or a whole CSV file, whose number of rows is unknown."""

    file: InputFile
    row_groups: tuple[int, ...]
    first_row: int
    num_rows: int | None


@dataclass(frozen=True)
class Contract:
    """The types that the three columns have in every file, dictionaries and kinds of strings aside."""

    user: pa.DataType
    item: pa.DataType
    time: pa.DataType

    @property
    def time_kind(self) -> Literal["integer", "timestamp"]:
        return "timestamp" if pa.types.is_temporal(self.time) else "integer"

    @property
    def item_values(self) -> pa.DataType:
        return _stored(self.item)

    @property
    def event_schema(self) -> pa.Schema:
        """Of the events in a Block."""
        types = [_stored(self.user), _stored(self.item), pa.int64(), pa.int64()]
        return pa.schema(zip((*ROLES, "row"), types, strict=True))


@dataclass(frozen=True)
class Inputs:
    """The logs after their headers were read: chunks in the order of the log (files by name, then rows)."""

    files: tuple[InputFile, ...]
    contract: Contract
    chunks: tuple[InputChunk, ...]


@dataclass(frozen=True)
class Block:
    """Consecutive rows: `events` (user, item, time, row) and those `rejected` (schema of trainer/logs/quarantine.py)."""

    num_rows: int
    events: pa.Table
    rejected: pa.Table


@dataclass(frozen=True)
class _Header:
    schema: pa.Schema
    rows_of_groups: tuple[int, ...] | None  # None: a CSV file, which does not say


def inspect_files(files: tuple[InputFile, ...], logs: LogsConfig, rows_per_chunk: int = ROWS_PER_CHUNK) -> Inputs:
    """Read every header, check the contract, cut into chunks; no data is read but the first block of CSV files.

    Raises UserError naming file and column if a file cannot be read, lacks a column, has it in a type that cannot be
    used or in another type than the first file, or if the logs have no rows.
    """
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        headers = list(pool.map(_read_header, files))
    contract = Contract(*(_agreed_type(files, headers, role, getattr(logs, role)) for role in ROLES))
    chunks = [c for file, header in zip(files, headers, strict=True) for c in _chunks(file, header, rows_per_chunk)]
    if not chunks:
        raise UserError(f"logs {files[0].name}{_and_more(len(files))}: no rows at all; check logs.path")
    return Inputs(files, contract, tuple(chunks))


def read_chunk(chunk: InputChunk, contract: Contract, logs: LogsConfig) -> Iterator[Block]:
    """Read and check a chunk, block by block, so that memory is bounded whatever the size of the file.

    Raises UserError naming the file if it cannot be read to its end, changed since it was found, or holds a number that
    an int64 cannot.
    """
    row = chunk.first_row
    columns = {role: getattr(logs, role) for role in ROLES}
    with explaining(chunk.file):
        for batch in _batches(chunk, contract, list(columns.values())):
            raw = pa.table(
                {role: _plain(batch.column(name), getattr(contract, role)) for role, name in columns.items()}
            )
            yield check_rows(raw, row, chunk.file.name, columns)
            row += raw.num_rows
        chunk.file.check_unchanged()


def check_rows(raw: pa.Table, first_row: int, file: str, columns: dict[str, str]) -> Block:
    """Split rows into events and quarantined ones. Null, an empty string and NaN all count as null.

    Raises UserError for a value that int64 cannot hold and for a time with a fraction: these say that the column is the
    wrong one, or of the wrong type, not that a row is bad.
    """
    rows = pa.array(np.arange(first_row, first_row + raw.num_rows))
    values = {role: _normalised(raw.column(role), role, columns[role], file, first_row) for role in ROLES}
    events = pa.table({**values, "row": rows})
    bad = [_is_null(values[role]) for role in ROLES]
    any_bad = bad[0] | bad[1] | bad[2]
    if not any_bad.any():
        return Block(raw.num_rows, events, QUARANTINE_SCHEMA.empty_table())
    chosen = np.flatnonzero(any_bad)
    reason = np.where(bad[0][chosen], 0, np.where(bad[1][chosen], 1, 2))
    rejected = quarantine_table(
        raw.take(pa.array(chosen)),
        pa.repeat(file, len(chosen)),
        rows.take(pa.array(chosen)),
        pa.array(REASONS).take(pa.array(reason)),
    )
    return Block(raw.num_rows, events.filter(pa.array(~any_bad)), rejected)


@contextmanager
def explaining(file: InputFile) -> Iterator[None]:
    """Turn what pyarrow or the operating system says about a file into a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"logs {file.name}: cannot be read as {file.format} ({_first_line(error)}); it is truncated, damaged, "
            "gone, or of another format: write the file again, leave it out of logs.path, or set logs.format"
        ) from None


def _read_header(file: InputFile) -> _Header:
    with explaining(file):
        if file.format == "parquet":
            with _open_parquet(file) as parquet:
                metadata = parquet.metadata
                rows = tuple(metadata.row_group(k).num_rows for k in range(metadata.num_row_groups))
                return _Header(parquet.schema_arrow, rows)
        with _open_csv(file, HEADER_BYTES) as reader:
            return _Header(pa.schema([field.with_type(_widened(field.type)) for field in reader.schema]), None)


def _widened(inferred: pa.DataType) -> pa.DataType:
    """Dates or whole seconds in a CSV file's first block do not promise that fractions will not follow."""
    if pa.types.is_date(inferred):
        return pa.timestamp("us")
    if pa.types.is_timestamp(inferred) and inferred.unit == "s":
        return pa.timestamp("us", inferred.tz)
    return inferred


def _agreed_type(files: tuple[InputFile, ...], headers: list[_Header], role: str, column: str) -> pa.DataType:
    """The one type of a column. A dataset scan would cast or fill with nulls, so every file is compared here."""
    agreed, origin = None, ""
    for file, header in zip(files, headers, strict=True):
        found = _type_of(file, header, role, column)
        if pa.types.is_null(found):  # a column without any value fits every type
            continue
        if agreed is None:
            _check_usable(found, file, role, column)
            agreed, origin = found, file.name
        elif found != agreed and file.format == "parquet":  # a CSV file has no types: it is read as the agreed one
            raise UserError(
                f'logs {file.name}: column "{column}" (logs.{role}) is {found} here and {agreed} in {origin}; '
                "write every file with the same type, or leave this one out of logs.path"
            )
    if agreed is None:
        where = f"{files[0].name}{_and_more(len(files))}"
        raise UserError(
            f'logs {where}: column "{column}" (logs.{role}) holds no value; set logs.{role} to the right column'
        )
    return agreed


def _type_of(file: InputFile, header: _Header, role: str, column: str) -> pa.DataType:
    names = header.schema.names
    if names.count(column) == 1:
        found = header.schema.field(column).type
        if pa.types.is_dictionary(found):
            found = found.value_type
        return pa.string() if pa.types.is_large_string(found) or pa.types.is_string_view(found) else found
    if column in names:
        raise UserError(
            f'logs {file.name}: column "{column}" (logs.{role}) occurs {names.count(column)} times; rename one'
        )
    nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    remedy = f'did you mean "{nearest[0]}"? Then set' if nearest else "set"
    raise UserError(
        f'logs {file.name}: there is no column "{column}"; {remedy} logs.{role} to the column of the {role} '
        f"(columns: {', '.join(names)})"
    )


def _check_usable(found: pa.DataType, file: InputFile, role: str, column: str) -> None:
    types = pa.types
    if role == "time":
        usable = (
            types.is_integer(found) or types.is_timestamp(found) or types.is_date(found) or types.is_floating(found)
        )
        wanted = "an integer, a timestamp or a date"
    else:
        usable, wanted = types.is_integer(found) or types.is_string(found), "an integer or a string"
    if not usable:
        raise UserError(
            f'logs {file.name}: column "{column}" is {found}, and a {role} must be {wanted}; '
            f"set logs.{role} to another column, or convert this one"
        )


def _chunks(file: InputFile, header: _Header, rows_per_chunk: int) -> Iterator[InputChunk]:
    if header.rows_of_groups is None:
        yield InputChunk(file, (), 0, None)
        return
    groups: list[int] = []
    first_row = num_rows = 0
    for group, rows in enumerate(header.rows_of_groups):
        if groups and num_rows + rows > rows_per_chunk:
            yield InputChunk(file, tuple(groups), first_row, num_rows)
            groups, first_row, num_rows = [], first_row + num_rows, 0
        groups.append(group)
        num_rows += rows
    if num_rows:
        yield InputChunk(file, tuple(groups), first_row, num_rows)


def _batches(chunk: InputChunk, contract: Contract, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """One thread: a task has one CPU, and pyarrow's own threads would only crowd the others out."""
    names = list(dict.fromkeys(columns))
    if chunk.file.format == "parquet":
        with _open_parquet(chunk.file) as parquet:
            yield from parquet.iter_batches(ROWS_PER_CHUNK, chunk.row_groups, names, use_threads=False)
        return
    types = {column: getattr(contract, role) for role, column in zip(ROLES, columns, strict=True)}
    with _open_csv(
        chunk.file, CSV_BLOCK_BYTES, pacsv.ConvertOptions(include_columns=names, column_types=types)
    ) as reader:
        yield from reader


def _open_parquet(file: InputFile) -> pq.ParquetFile:
    return pq.ParquetFile(file.filesystem().open_input_file(file.path), page_checksum_verification=True)


def _open_csv(
    file: InputFile, block_bytes: int, convert: pacsv.ConvertOptions | None = None
) -> pacsv.CSVStreamingReader:
    return pacsv.open_csv(
        file.filesystem().open_input_stream(file.path),  # decompresses by the file's ending
        read_options=pacsv.ReadOptions(use_threads=False, block_size=block_bytes),
        parse_options=pacsv.ParseOptions(delimiter="\t" if file.format == "tsv" else ","),
        convert_options=convert,
    )


def _stored(agreed: pa.DataType) -> pa.DataType:
    return agreed if pa.types.is_string(agreed) else pa.int64()


def _plain(column: pa.Array, agreed: pa.DataType) -> pa.Array:
    """Without dictionaries and large strings: the only casts that the contract leaves open, and they lose nothing."""
    return column if column.type == agreed else column.cast(agreed)


def _normalised(column: pa.ChunkedArray, role: str, name: str, file: str, first_row: int) -> pa.ChunkedArray:
    """As int64 or string."""
    try:
        if pa.types.is_string(column.type) or pa.types.is_int64(column.type):
            return column
        if pa.types.is_temporal(column.type):
            microseconds = pc.CastOptions(
                pa.timestamp("us", getattr(column.type, "tz", None)), allow_time_truncate=True
            )
            return column.cast(options=microseconds).cast(pa.int64())
        if pa.types.is_floating(column.type):
            return _whole_numbers(column, name, file, first_row)
        return column.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise UserError(
            f'logs {file}: column "{name}" (logs.{role}) does not fit into an int64 ({_first_line(error)}); '
            + ("use another unit of time" if role == "time" else f"write the {role}s as strings")
        ) from None


def _whole_numbers(column: pa.ChunkedArray, name: str, file: str, first_row: int) -> pa.ChunkedArray:
    """Some tools write integers as floats; these are taken, a time with a fraction is not."""
    values: npt.NDArray[np.float64] = column.to_numpy().astype(np.float64)
    missing = np.isnan(values)
    broken = ~missing & ((values != np.floor(values)) | (np.abs(values) >= 2.0**63))
    if broken.any():
        row = int(np.argmax(broken))
        raise UserError(
            f'logs {file} row {first_row + row}: column "{name}" (logs.time) is {values[row]}, and a time must be '
            "a whole number; multiply it by the resolution that you need (for example 1000) and write it as an integer"
        )
    return pa.chunked_array([pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)])


def _is_null(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    if pa.types.is_string(column.type):
        column = pc.fill_null(pc.equal(pc.binary_length(column), 0), True)
    elif column.null_count == 0:
        return np.zeros(len(column), np.bool_)
    else:
        column = column.is_null()
    return np.asarray(column.to_numpy(), np.bool_)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _and_more(num_files: int) -> str:
    return f" and {num_files - 1} more" if num_files > 1 else ""
