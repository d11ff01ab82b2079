"""Quarantined rows of event logs: kept with file, row, reason and what they held, so that somebody can look.

Tasks write them to Arrow files of their own, the driver gathers these into rejected.parquet. Both are bounded; the
counts are exact whatever was cut off.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_ROWS = 1_000_000
VALUES = ("user", "item", "time")
SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())] + [(name, pa.string()) for name in VALUES]
)


class Quarantine:
    """A file of quarantined rows, created with the first of them. `counts` holds all rows by reason, kept or not."""

    def __init__(self, path: Path, max_rows: int = MAX_ROWS) -> None:
        self.counts: Counter[str] = Counter()
        self._path, self._room = path, max_rows
        self._sink: Any = None

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()

    def add(self, rows: pa.Table) -> None:
        """Take rows (SCHEMA) over. Raises OSError if the disk does not take them."""
        if not rows.num_rows:
            return
        for entry in rows.column("reason").value_counts().to_pylist():
            self.counts[entry["values"]] += entry["counts"]
        if self._sink is None:
            self._sink = pa.ipc.new_file(self._path, SCHEMA)
        self._sink.write_table(rows.slice(0, self._room))
        self._room -= min(self._room, rows.num_rows)


def quarantine_table(raw: pa.Table, files: pa.Array, rows: pa.Array, reasons: pa.Array) -> pa.Table:
    """Rows as SCHEMA wants them: user, item and time of `raw`, where it has them, become strings, timestamps in UTC."""
    values = [
        _printed(raw.column(name)) if name in raw.column_names else pa.nulls(raw.num_rows, pa.string())
        for name in VALUES
    ]
    return pa.table([files, rows, reasons, *values], schema=SCHEMA)


def gather(sources: Iterable[Path], target: Path, max_rows: int = MAX_ROWS) -> None:
    """Write the first rows of the files, in the order given, to one Parquet file; no file if there are no rows."""
    tables = list(_first_rows(sources, max_rows))
    if tables:
        pq.write_table(pa.concat_tables(tables), target, compression="zstd", write_page_checksum=True)


def examples(sources: Iterable[Path], num_rows: int = 3, leave_out: Collection[str] = ()) -> list[str]:
    """The first quarantined rows as people read them: "logs/a.parquet row 17 (null user)". leave_out: reasons."""
    rows = [row for table in _first_rows(sources, num_rows, leave_out) for row in table.to_pylist()]
    return [f"{row['file']} row {row['row']} ({row['reason']})" for row in rows]


def _first_rows(sources: Iterable[Path], max_rows: int, leave_out: Collection[str] = ()) -> Iterator[pa.Table]:
    for source in sources:
        if max_rows > 0 and source.exists():
            table = pa.ipc.open_file(source.read_bytes()).read_all()
            wanted = pc.invert(pc.is_in(table.column("reason"), value_set=pa.array(list(leave_out), pa.string())))
            table = table.filter(wanted).slice(0, max_rows)
            max_rows -= table.num_rows
            yield table


def _printed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):  # printing in a zone would need that zone's rules on every machine
        column = column.cast(pa.timestamp(column.type.unit))
    return column.cast(pa.string())
