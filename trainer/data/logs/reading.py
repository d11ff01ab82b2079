"""Event logs read block by block. Every row is accepted or quarantined.

Pure pyarrow, without Ray. The invariant: every row of every file is accepted with its columns in the types of
`Contract.stored`, or quarantined with file, row and reason. Nothing is dropped, guessed or cast silently.

Rows are numbered from 0 in their file, without a header. Times are int64: integers unchanged, timestamps and dates as
microseconds since 1970 UTC.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.logs.config import LogsConfig
from trainer.data.logs.contract import Contract, InputChunk
from trainer.data.logs.files import UnreadableFileError, explaining
from trainer.data.logs.formats import reader_of
from trainer.data.logs.observations import observe_ids
from trainer.data.logs.quarantine import SCHEMA as QUARANTINE_SCHEMA
from trainer.data.logs.quarantine import quarantine_table
from trainer.data.logs.values import LARGEST, BlockLocation, normalised

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """Conditions under which rows are rejected, besides nulls in required columns."""

    # Whether negative integers are accepted as ids.
    negative_ids: bool = False
    # Earliest time that is accepted, in the unit of the dataset; None without a limit.
    earliest_time: int | None = None
    # Latest time that is accepted, in the unit of the dataset; None without a limit.
    latest_time: int | None = None


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a file."""

    num_rows: int
    # Rows in the schema Contract.event_schema.
    events: pa.Table
    # Rows in the schema of trainer/data/logs/quarantine.py.
    rejected: pa.Table
    # Counts of suspicious values, by the names in trainer/data/logs/observations.py.
    observed: Counter[str] = field(default_factory=Counter)


def read_chunk(chunk: InputChunk, contract: Contract, rules: Rules) -> Iterator[RowBlock]:
    """Read and check a chunk block by block, so that memory is bounded for any size of file.

    Raises:
        UnreadableFileError: naming the file, if it cannot be read to its end or changed since it was found.
        UserError: as `check_rows` does.
    """
    row = chunk.first_row
    reader = reader_of(chunk.file)
    with explaining(chunk.file):
        chunk.file.check_unchanged()  # before as well: a rewritten file may lack columns or row groups
        for batch in reader.batches(chunk.file, contract.columns, chunk.row_groups):
            where = BlockLocation(chunk.file.name, row)
            raw = pa.table(
                {
                    column.name: reader.typed(batch.column(column.source), column, agreed, where)
                    for column, agreed in zip(contract.columns, contract.types, strict=True)
                }
            )
            block = check_rows(raw, where, contract, rules)
            yield block
            row += raw.num_rows
        chunk.file.check_unchanged()
    if chunk.num_rows not in (None, row - chunk.first_row):
        # With a damaged header, a page can be taken for one of another kind, and skipped.
        raise UnreadableFileError(
            f"logs {chunk.file.name}: has {row - chunk.first_row:,} rows, and its header states {chunk.num_rows:,}; "
            "the file is damaged: write it again, or leave it out of logs.path"
        )


def check_rows(raw: pa.Table, where: BlockLocation, contract: Contract, rules: Rules) -> RowBlock:
    """Split rows into events and quarantined ones. Null, an empty string, NaN and logs.null_values count as null.

    Raises:
        UserError: for a feature value that its type cannot hold, for a time with a fraction, and for a vector of
            another width.
            Such a value means that the column or its type is wrong, not that a row is bad.
    """
    rows = pa.array(np.arange(where.first_row, where.first_row + raw.num_rows))
    values = {column.name: normalised(raw.column(column.name), column, where) for column in contract.columns}
    events = pa.table({**values, "row": rows})
    reasons = list(_reasons(raw, values, contract, rules))
    if not reasons:
        return RowBlock(raw.num_rows, events, QUARANTINE_SCHEMA.empty_table(), observe_ids(events) + where.observed)
    any_bad = np.logical_or.reduce([bad for _, bad in reasons])
    chosen = np.flatnonzero(any_bad)
    first = np.argmax(np.stack([bad[chosen] for _, bad in reasons]), axis=0)
    rejected = quarantine_table(
        raw.take(pa.array(chosen)),
        pa.repeat(where.file, len(chosen)),
        rows.take(pa.array(chosen)),
        pa.array([reason for reason, _ in reasons]).take(pa.array(first)),
    )
    kept = events.filter(pa.array(~any_bad))
    return RowBlock(raw.num_rows, kept, rejected, observe_ids(kept) + where.observed)


def _reasons(
    raw: pa.Table, values: dict[str, pa.ChunkedArray], contract: Contract, rules: Rules
) -> Iterator[tuple[str, Bools]]:
    """Yield each reason that some row is rejected for, with a mask of the rows. The first reason of a row counts."""
    for column in contract.columns:
        if column.role in ("id", "time") and pa.types.is_uint64(raw.column(column.name).type):
            yield from _where_any(f"{column.name} beyond int64", pc.greater(raw.column(column.name), LARGEST))
    for column in contract.columns:
        if column.role in ("id", "time", "label"):
            missing = _is_null(values[column.name])
            if missing is not None:
                yield f"null {column.source if column.role == 'label' else column.name}", missing
    for column in contract.columns:
        ids = values[column.name]
        if column.role == "id" and not rules.negative_ids and pa.types.is_integer(ids.type):
            yield from _where_any(f"negative {column.name}", pc.less(ids, 0))
    if "time" in values:
        if rules.earliest_time is not None:
            yield from _where_any("time too early", pc.less(values["time"], rules.earliest_time))
        if rules.latest_time is not None:
            yield from _where_any("time too late", pc.greater(values["time"], rules.latest_time))


def _where_any(reason: str, mask: pa.ChunkedArray) -> Iterator[tuple[str, Bools]]:
    if pc.any(mask).as_py():
        yield reason, np.asarray(pc.fill_null(mask, False).to_numpy(), np.bool_)


def _is_null(column: pa.ChunkedArray) -> Bools | None:
    """Return a mask of the null values, or None if there are none."""
    return np.asarray(column.is_null().to_numpy(), np.bool_) if column.null_count else None


def rules_of(logs: LogsConfig, earliest_time: int | None, latest_time: int | None) -> Rules:
    """Return the rules of a config, with times in the unit of the dataset."""
    return Rules(logs.negative_ids == "keep", earliest_time, latest_time)
