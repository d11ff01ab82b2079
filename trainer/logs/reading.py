"""Event logs read block by block, every row either handed on or quarantined.

Pure pyarrow; knows nothing of Ray. The invariant: every row of every file is handed on with its columns in the types of
`Contract.stored`, or quarantined with file, row and reason. Nothing is dropped, guessed or cast silently.

Rows are numbered from 0 in their file, without a header. Times are int64: integers as they stand, timestamps and dates as
microseconds since 1970 UTC.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from trainer.errors import UserError, first_line
from trainer.logs.columns import Column
from trainer.logs.config import LogsConfig
from trainer.logs.contract import Contract, InputChunk
from trainer.logs.files import UnreadableFileError, explaining
from trainer.logs.headers import open_csv, open_parquet
from trainer.logs.quarantine import SCHEMA as QUARANTINE_SCHEMA
from trainer.logs.quarantine import quarantine_table

ROWS_PER_BLOCK = 1 << 20
CSV_BLOCK_BYTES = 16 << 20
_LARGEST = pa.scalar(2**63 - 1, pa.uint64())

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """Which rows are rejected, besides those with nulls where none may be. Times in the unit of the dataset."""

    negative_ids: bool = False
    earliest_time: int | None = None
    latest_time: int | None = None


@dataclass(frozen=True)
class Block:
    """Consecutive rows: `events` (Contract.event_schema) and those `rejected` (schema of trainer/logs/quarantine.py)."""

    num_rows: int
    events: pa.Table
    rejected: pa.Table


def read_chunk(chunk: InputChunk, contract: Contract, rules: Rules) -> Iterator[Block]:
    """Read and check a chunk, block by block, so that memory is bounded whatever the size of the file.

    Raises UnreadableFileError naming the file if it cannot be read to its end or changed since it was found, and UserError
    as `check_rows` does.
    """
    row = chunk.first_row
    with explaining(chunk.file):
        chunk.file.check_unchanged()  # before as well: a rewritten file may lack columns or row groups
        for batch in _batches(chunk, contract):
            raw = pa.table(
                {
                    column.name: _plain(batch.column(column.source), agreed)
                    for column, agreed in zip(contract.columns, contract.types, strict=True)
                }
            )
            yield check_rows(raw, row, chunk.file.name, contract, rules)
            row += raw.num_rows
        chunk.file.check_unchanged()
    if chunk.num_rows not in (None, row - chunk.first_row):
        # A damaged header of a page can make the page be taken for one of another kind, and passed over.
        raise UnreadableFileError(
            f"logs {chunk.file.name}: {row - chunk.first_row:,} rows were found where its header promises {chunk.num_rows:,}; "
            "it is damaged: write the file again, or leave it out of logs.path"
        )


def check_rows(raw: pa.Table, first_row: int, file: str, contract: Contract, rules: Rules) -> Block:
    """Split rows into events and quarantined ones. Null, an empty string and NaN all count as null.

    Raises UserError for a feature that its type cannot hold, for a time with a fraction, and for a vector of another width:
    these say that the column is the wrong one, or of the wrong type, not that a row is bad.
    """
    rows = pa.array(np.arange(first_row, first_row + raw.num_rows))
    where = _Where(file, first_row)
    values = {column.name: _normalised(raw.column(column.name), column, where) for column in contract.columns}
    events = pa.table({**values, "row": rows})
    reasons = list(_reasons(raw, values, contract, rules))
    if not reasons:
        return Block(raw.num_rows, events, QUARANTINE_SCHEMA.empty_table())
    any_bad = np.logical_or.reduce([bad for _, bad in reasons])
    chosen = np.flatnonzero(any_bad)
    first = np.argmax(np.stack([bad[chosen] for _, bad in reasons]), axis=0)
    rejected = quarantine_table(
        raw.take(pa.array(chosen)),
        pa.repeat(file, len(chosen)),
        rows.take(pa.array(chosen)),
        pa.array([reason for reason, _ in reasons]).take(pa.array(first)),
    )
    return Block(raw.num_rows, events.filter(pa.array(~any_bad)), rejected)


def _reasons(
    raw: pa.Table, values: dict[str, pa.ChunkedArray], contract: Contract, rules: Rules
) -> Iterator[tuple[str, Bools]]:
    """Why rows are rejected, and which; only reasons that some row has. A row's first one counts."""
    for column in contract.columns:
        if column.role in ("id", "time") and pa.types.is_uint64(raw.column(column.name).type):
            yield from _where_any(f"{column.name} beyond int64", pc.greater(raw.column(column.name), _LARGEST))
    for column in contract.columns:
        if column.role in ("id", "time", "label"):
            missing = _is_null(values[column.name])
            if missing is not None:
                yield f"null {column.source if column.role == 'label' else column.name}", missing
    for column in contract.columns:
        found = values[column.name]
        if column.role == "id" and not rules.negative_ids and pa.types.is_integer(found.type):
            yield from _where_any(f"negative {column.name}", pc.less(found, 0))
    if "time" in values:
        if rules.earliest_time is not None:
            yield from _where_any("time too early", pc.less(values["time"], rules.earliest_time))
        if rules.latest_time is not None:
            yield from _where_any("time too late", pc.greater(values["time"], rules.latest_time))


def _where_any(reason: str, found: pa.ChunkedArray) -> Iterator[tuple[str, Bools]]:
    if pc.any(found).as_py():
        yield reason, np.asarray(pc.fill_null(found, False).to_numpy(), np.bool_)


def _batches(chunk: InputChunk, contract: Contract) -> Iterator[pa.RecordBatch]:
    """One thread: a task has one CPU, and pyarrow's own threads would only crowd the others out."""
    names = list(dict.fromkeys(column.source for column in contract.columns))
    if chunk.file.format == "parquet":
        with open_parquet(chunk.file) as parquet:
            yield from parquet.iter_batches(ROWS_PER_BLOCK, chunk.row_groups, names, use_threads=False)
        return
    # A column without any value in the headers is read as that, so that a value further down is refused and not lost.
    types = {column.source: agreed for column, agreed in zip(contract.columns, contract.types, strict=True)}
    options = pacsv.ConvertOptions(include_columns=names, column_types=types)
    with open_csv(chunk.file, CSV_BLOCK_BYTES, options) as reader:
        yield from reader


def _plain(column: pa.Array, agreed: pa.DataType) -> pa.Array:
    """Without dictionaries and large types: the only casts that the contract leaves open, and they lose nothing."""
    types = pa.types
    if types.is_null(agreed) or (_is_list(column.type) and types.is_null(column.type.value_type)):
        return pa.nulls(len(column), agreed)  # empty lists of no type hold no value either
    return column if column.type == agreed else column.cast(agreed)


def _is_list(found: pa.DataType) -> bool:
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found))


@dataclass(frozen=True)
class _Where:
    """Where a block's rows are, for messages."""

    file: str
    first_row: int

    def __call__(self, row: int) -> str:
        return f"logs {self.file} row {self.first_row + row}"


def _normalised(values: pa.ChunkedArray, column: Column, where: _Where) -> pa.ChunkedArray:
    """In the type of Contract.stored, nulls where there is no value."""
    try:
        match column.role:
            case "id":
                return _without_empty(values) if pa.types.is_string(values.type) else _as_integer(values)
            case "time" | "timestamp":
                return _as_moment(values, column, where)
            case "label" | "numeric":
                return _as_float(values)
            case "categorical":
                return _as_categorical(values, column, where)
            case "vector":
                return _as_vector(values, column, where)
    except pa.ArrowInvalid as error:
        remedy = "use another unit of time" if column.role == "time" else "write the values as strings"
        raise UserError(
            f'logs {where.file}: column "{column.source}" ({column.setting}) does not fit into an int64 '
            f"({first_line(error)}); {remedy}"
        ) from None


def _without_empty(values: pa.ChunkedArray) -> pa.ChunkedArray:
    empty = pc.equal(pc.binary_length(values), 0)
    return pc.if_else(empty, pa.scalar(None, pa.string()), values) if pc.any(empty).as_py() else values


def _as_integer(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64; numbers that it cannot hold become null, and `_reasons` tells them from missing ones."""
    if pa.types.is_uint64(values.type):
        values = pc.if_else(pc.greater(values, _LARGEST), pa.scalar(None, values.type), values)
    return values.cast(pa.int64())


def _as_moment(values: pa.ChunkedArray, column: Column, where: _Where) -> pa.ChunkedArray:
    types = pa.types
    if types.is_null(values.type):
        return values.cast(pa.int64())
    if types.is_string(values.type):
        values = _parsed(_without_empty(values), column, where)
    if types.is_temporal(values.type):
        microseconds = pc.CastOptions(pa.timestamp("us", getattr(values.type, "tz", None)), allow_time_truncate=True)
        return values.cast(options=microseconds).cast(pa.int64())
    if types.is_floating(values.type):
        return _whole_numbers(values, column, where)
    return _as_integer(values) if column.role == "time" else values.cast(pa.int64())


def _parsed(text: pa.ChunkedArray, column: Column, where: _Where) -> pa.ChunkedArray:
    """ISO dates and times, in UTC unless they say a zone."""
    has_zone = pc.match_substring_regex(text, r":.*(Z|[+-]\d\d(:?\d\d)?)$")
    try:  # pyarrow reads either kind, but not both in one column
        plain = pc.if_else(has_zone, pa.scalar(None, pa.string()), text).cast(pa.timestamp("us"))
        zoned = pc.if_else(has_zone, text, pa.scalar(None, pa.string())).cast(pa.timestamp("us", "UTC"))
        return pc.coalesce(plain, zoned.cast(pa.timestamp("us")))
    except pa.ArrowInvalid as error:
        raise UserError(
            f'logs {where.file}: column "{column.source}" ({column.setting}) holds text that is no ISO date '
            f"({first_line(error)}); write dates as 2024-05-01, or take the column as categorical"
        ) from None


def _as_float(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """float32; NaN and what is infinite there become null."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if not pa.types.is_floating(values.type):  # an integer beyond 2^24 is rounded, as any float32 is
        values = values.cast(pa.float64(), safe=False)
    values = values.cast(pa.float32(), safe=False)
    finite = pc.is_finite(values)
    if not pc.all(finite, min_count=0).as_py():
        values = pc.if_else(finite, values, pa.scalar(None, values.type))
    return values


def _as_categorical(values: pa.ChunkedArray, column: Column, where: _Where) -> pa.ChunkedArray:
    types = pa.types
    if column.separator is not None:
        return _without_empty_entries(pc.split_pattern(_without_empty(values.cast(pa.string())), column.separator))
    if types.is_list(values.type):
        if types.is_string(values.type.value_type):
            return _without_empty_entries(values)
        return values.cast(pa.list_(pa.int64()))
    if types.is_string(values.type):
        return _without_empty(values)
    if types.is_floating(values.type):
        return _whole_numbers(values, column, where)
    return values.cast(pa.int64())


def _without_empty_entries(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    entries = pc.list_flatten(lists)
    nothing = pc.equal(pc.binary_length(entries), 0)
    if not pc.any(nothing).as_py():
        return lists
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
    kept = pc.if_else(nothing, pa.scalar(None, pa.string()), entries).combine_chunks()
    missing = lists.is_null().combine_chunks()
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, kept, mask=missing)])


def _as_vector(values: pa.ChunkedArray, column: Column, where: _Where) -> pa.ChunkedArray:
    values = values.cast(pa.list_(pa.float32()), safe=False)  # an integer beyond 2^24 is rounded, as any float32 is
    lengths = pc.fill_null(pc.list_value_length(values), column.dim).to_numpy()
    wrong = np.flatnonzero(lengths != column.dim)
    if wrong.size:
        raise UserError(
            f'{where(int(wrong[0]))}: column "{column.source}" ({column.setting}) has {lengths[wrong[0]]} numbers, '
            f"and {column.setting}.dim = {column.dim}; set dim to the width of the vectors, which must all have the same"
        )
    return values


def _whole_numbers(values: pa.ChunkedArray, column: Column, where: _Where) -> pa.ChunkedArray:
    """Some tools write integers as floats; these are taken, a number with a fraction is not."""
    numbers: npt.NDArray[np.float64] = values.to_numpy().astype(np.float64)
    missing = np.isnan(numbers)
    broken = ~missing & ((numbers != np.floor(numbers)) | (np.abs(numbers) >= 2.0**63))
    if broken.any():
        row = int(np.argmax(broken))
        what = "a time" if column.role in ("time", "timestamp") else "a categorical value"
        remedy = (
            "multiply it by the resolution that you need (for example 1000) and write it as an integer"
            if column.role in ("time", "timestamp")
            else 'write it as text, or take it as kind = "numeric"'
        )
        raise UserError(
            f'{where(row)}: column "{column.source}" ({column.setting}) is {numbers[row]}, and {what} must be '
            f"a whole number; {remedy}"
        )
    return pa.chunked_array([pa.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)])


def _is_null(column: pa.ChunkedArray) -> Bools | None:
    """Which values are null; None if none is."""
    return np.asarray(column.is_null().to_numpy(), np.bool_) if column.null_count else None


def rules_of(logs: LogsConfig, earliest_time: int | None, latest_time: int | None) -> Rules:
    """The rules of a config, its times resolved to the unit of the dataset."""
    return Rules(logs.negative_ids == "keep", earliest_time, latest_time)
