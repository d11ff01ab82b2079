"""Quarantined rows of event logs: kept with file, row, reason and values, for inspection.

Each task writes its rows to an Arrow file. The driver gathers these files into rejected.parquet. Both are bounded, but
the counts are always exact.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trainer.storage.parquet import write_parquet

MAX_ROWS = 1_000_000
VALUES = ("user", "item", "time")
SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())] + [(name, pa.string()) for name in VALUES]
)


class Quarantine:
    """A file of quarantined rows, created with the first row. `counts` covers all rows by reason, stored or not."""

    def __init__(self, path: Path, max_rows: int = MAX_ROWS) -> None:
        self.counts: Counter[str] = Counter()
        self._path = path
        self._room = max_rows
        self._sink: Any = None

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()

    def add(self, rows: pa.Table) -> None:
        """Add rows (SCHEMA). Raises OSError if the disk is full."""
        if not rows.num_rows:
            return
        for entry in rows.column("reason").value_counts().to_pylist():
            self.counts[entry["values"]] += entry["counts"]
        if self._sink is None:
            self._sink = pa.ipc.new_file(self._path, SCHEMA)
        self._sink.write_table(rows.slice(0, self._room))
        self._room -= min(self._room, rows.num_rows)


def quarantine_table(raw: pa.Table, files: pa.Array, rows: pa.Array, reasons: pa.Array) -> pa.Table:
    """Return rows in SCHEMA.

    User, item and time of `raw` become strings, timestamps in UTC. Columns that `raw` lacks become null.

    Args:
        raw: the rejected rows.
        files: the file of each row.
        rows: the number of each row in its file.
        reasons: the reason of each row.
    """
    values = [
        _printed(raw.column(name)) if name in raw.column_names else pa.nulls(raw.num_rows, pa.string())
        for name in VALUES
    ]
    return pa.table([files, rows, reasons, *values], schema=SCHEMA)


def gather(sources: Iterable[Path], target: Path, max_rows: int = MAX_ROWS) -> None:
    """Write the first rows of the files, in the given order, to one Parquet file. Without rows, write no file."""
    tables = list(_first_rows(sources, max_rows))
    if tables:
        write_parquet(pa.concat_tables(tables), target, compression="zstd", write_page_checksum=True)


def examples(sources: Iterable[Path], num_rows: int = 3, leave_out: Collection[str] = ()) -> list[str]:
    """Describe the first quarantined rows for people, for example "logs/a.parquet row 17 (null user)".

    Args:
        sources: files of quarantined rows.
        num_rows: number of rows at most.
        leave_out: reasons to skip.
    """
    rows = [row for table in _first_rows(sources, num_rows, leave_out) for row in table.to_pylist()]
    return [f"{row['file']} row {row['row']} ({row['reason']})" for row in rows]


def _first_rows(sources: Iterable[Path], max_rows: int, leave_out: Collection[str] = ()) -> Iterator[pa.Table]:
    for source in sources:
        if max_rows > 0 and source.exists():
            table = pa.ipc.open_file(source.read_bytes()).read_all()
            selected = pc.invert(pc.is_in(table.column("reason"), value_set=pa.array(list(leave_out), pa.string())))
            table = table.filter(selected).slice(0, max_rows)
            max_rows -= table.num_rows
            yield table


def _printed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):  # printing in a zone would need that zone's rules on every machine
        column = column.cast(pa.timestamp(column.type.unit))
    return column.cast(pa.string())
