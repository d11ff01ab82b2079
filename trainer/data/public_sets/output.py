"""The output folder of a conversion: ownership, files, and clean-up after failed attempts.

Without conversion.json, which is written last, there is no converted set (trainer.output_folder).
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.public_sets.tables import Table
from trainer.errors import UserError
from trainer.output_folder import OwnNames, is_finished, remove_from, writing
from trainer.storage.files import write_json_atomically

FORMAT_VERSION = 1
ROWS_PER_GROUP = 1 << 18
GROUPS_PER_FILE = 8  # so that a file holds about two million events
RECORD = "conversion.json"
_OWN = OwnNames(
    RECORD,
    ".convert-",
    re.compile(r"(events-\d{5}|impressions-(val|test)|history|items|users)\.parquet|\.conversion\.json\..*\.tmp"),
)

OnRows = Callable[[str, int], None]


@dataclass(frozen=True)
class Conversion:
    """A finished conversion, as stored in conversion.json."""

    # Name of the set.
    set_name: str
    # Size in bytes of every file that was read.
    source: dict[str, int]
    # Rows of every table.
    rows: dict[str, int]
    # Size in bytes of every file that was written.
    files: dict[str, int]


def read_finished(folder: Path, set_name: str) -> Conversion | None:
    """Return the conversion in `folder`, or None if the folder is free.

    Raises UserError if it holds another set, an incomplete one, or anything else.
    """
    if not is_finished(folder, _OWN, str(folder), "choose another folder for the converted logs"):
        return None
    conversion = _read_record(folder)
    if conversion.set_name != set_name:
        raise UserError(f"{folder}: holds {conversion.set_name}, not {set_name}; choose another folder, or delete it")
    for name, num_bytes in conversion.files.items():
        if not (folder / name).exists() or (folder / name).stat().st_size != num_bytes:
            raise UserError(
                f"{folder}: {name} is missing or was changed since it was converted; delete the folder to convert again"
            )
    return conversion


def write(
    folder: Path, set_name: str, source: dict[str, int], tables: Sequence[Table], on_rows: OnRows | None = None
) -> Conversion:
    """Write the tables one after the other, and conversion.json last.

    Args:
        folder: output folder.
        set_name: name of the set.
        source: size in bytes of every file of the source.
        tables: the tables.
        on_rows: called with the name of a table and its rows so far.

    Raises:
        UserError: if a table has no rows, the folder cannot be written, or another command is writing it.
    """
    with _attempt(folder) as hidden:
        rows = {table.name: _write_table(table, hidden, on_rows) for table in tables}
        empty = [name for name, num_rows in rows.items() if num_rows == 0]
        if empty:
            raise UserError(f"{set_name}: the files for {', '.join(empty)} hold no rows; download them again")
        files = {path.name: path.stat().st_size for path in sorted(hidden.iterdir())}
        for name in files:
            (hidden / name).replace(folder / name)
        conversion = Conversion(set_name, source, rows, files)
        write_json_atomically(folder / RECORD, {"format_version": FORMAT_VERSION, **asdict(conversion)})
    return conversion


def _read_record(folder: Path) -> Conversion:
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        version = values.pop("format_version")
        conversion = Conversion(**values)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{folder / RECORD}: was not written by a conversion; choose another folder, or delete this one"
        ) from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder / RECORD}: has format version {version}, and this version of shoal writes {FORMAT_VERSION}; "
            "delete the folder to convert again"
        )
    return conversion


def _write_table(table: Table, folder: Path, on_rows: OnRows | None) -> int:
    """Write a table, and return its number of rows."""
    groups = _row_groups(table)
    num_rows = 0
    for index in count():
        first = next(groups, None)
        if first is None:
            return num_rows
        path = folder / (f"{table.name}-{index:05d}.parquet" if table.numbered else f"{table.name}.parquet")
        with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
            for group in chain([first], islice(groups, GROUPS_PER_FILE - 1 if table.numbered else None)):
                writer.write_table(group, row_group_size=ROWS_PER_GROUP)
                num_rows += group.num_rows
                if on_rows is not None:
                    on_rows(table.name, num_rows)
    raise AssertionError("count() has no end")


def _row_groups(table: Table) -> Iterator[pa.Table]:
    """Yield the batches as tables of ROWS_PER_GROUP rows; the last may have fewer."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in table.batches:
        while num_waiting + batch.num_rows >= ROWS_PER_GROUP:
            taken = ROWS_PER_GROUP - num_waiting
            yield pa.Table.from_batches([*waiting, batch.slice(0, taken)], table.schema)
            batch = batch.slice(taken)
            waiting = []
            num_waiting = 0
        if batch.num_rows:
            waiting.append(batch)
            num_waiting += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting, table.schema)


@contextmanager
def _attempt(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder. If the block ends without conversion.json, for any reason, nothing is left of it."""
    with writing(folder, str(folder), "converting into it", "", "choose another folder"):
        _clean(folder)
        hidden = folder / f"{_OWN.work}{uuid.uuid4().hex[:8]}"
        hidden.mkdir()
        try:
            yield hidden
        finally:
            _clean(folder)


def _clean(folder: Path) -> None:
    names = [path.name for path in folder.iterdir()]
    leftovers = _OWN.leftovers(names)
    if RECORD in names:
        leftovers = [name for name in leftovers if name.startswith(_OWN.work)]
    remove_from(folder, leftovers, last=_OWN.work)
