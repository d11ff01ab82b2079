"""The contract of event logs: the one type that each column has in all files.

Parquet files name their types in headers. A dataset scan would cast silently, and fill a missing column with nulls; so every file
is compared with the first, and on an append with what the dataset was made from. Text files name no types: they are scanned
(trainer/data/logs/text_scan.py), and read as the type of the Parquet files and of earlier ones where there are any.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from trainer.data.logs.column_types import check_usable, plain_type, stored_type, text_type
from trainer.data.logs.columns import SOURCES, Column, SourceName, columns_of
from trainer.data.logs.config import CategoricalFeatureConfig, FeatureSpec, Format, LogsConfig, feature_specs
from trainer.data.logs.files import InputFile, find_files
from trainer.data.logs.headers import Header, read_headers
from trainer.data.logs.quotes import Spanning
from trainer.data.logs.text_files import OTHER_DELIMITERS
from trainer.data.logs.text_scan import Scan, ScanJob, Seen, TextProfile, scan_here, seen_together
from trainer.errors import UserError

ROWS_PER_CHUNK = 1 << 20


@dataclass(frozen=True)
class Contract:
    """The columns of one source and the type of each in its files, dictionaries and kinds of strings and lists aside."""

    columns: tuple[Column, ...]
    types: tuple[pa.DataType, ...]

    def type_of(self, name: str) -> pa.DataType:
        """As in the files."""
        return next(found for column, found in zip(self.columns, self.types, strict=True) if column.name == name)

    def stored(self, name: str) -> pa.DataType:
        """As reading gives it."""
        column = next(column for column in self.columns if column.name == name)
        return stored_type(column, self.type_of(name))

    @property
    def time_kind(self) -> Literal["integer", "timestamp"]:
        found = self.type_of("time")
        return "timestamp" if pa.types.is_temporal(found) or pa.types.is_string(found) else "integer"

    @property
    def event_schema(self) -> pa.Schema:
        """Of the rows in a Block: the columns by name, and `row`."""
        stored = [
            (column.name, stored_type(column, found)) for column, found in zip(self.columns, self.types, strict=True)
        ]
        return pa.schema([*stored, ("row", pa.int64())])


@dataclass(frozen=True)
class InputChunk:
    """What one task reads: row groups of a Parquet file, or a whole CSV file, whose number of rows is unknown."""

    source: SourceName
    file: InputFile
    row_groups: tuple[int, ...]
    first_row: int
    num_rows: int | None


@dataclass(frozen=True)
class Inputs:
    """All sources after their headers were read and text files scanned."""

    files: dict[SourceName, tuple[InputFile, ...]]
    contracts: dict[SourceName, Contract]
    # In the order of the log: files by name, then rows.
    chunks: tuple[InputChunk, ...]
    # Why files were left out, by their names.
    unreadable: dict[str, str]
    # Text files in which rows take several lines, by their names.
    spanning: dict[str, Spanning] = field(default_factory=dict)

    @property
    def time_kind(self) -> Literal["integer", "timestamp"]:
        return self.contracts["logs"].time_kind


def find_inputs(logs: LogsConfig) -> dict[SourceName, tuple[InputFile, ...]]:
    """The files of every source. Raises UserError if a path leads to none."""
    sources: list[tuple[SourceName, str, str | list[str], Format]] = [("logs", "logs.path", logs.path, logs.format)]
    for name, source in (("history", logs.history), ("items", logs.items), ("users", logs.users)):
        if source is not None:
            sources.append((name, f"logs.{name}.path", source.path, source.format))  # type: ignore[arg-type]
    return {name: find_files(path, format, setting) for name, setting, path, format in sources}


@dataclass(frozen=True)
class _Readable:
    """A file that can be read. profile: what the scan of a text file found."""

    file: InputFile
    header: Header
    profile: TextProfile | None = None


def inspect_inputs(
    files: dict[SourceName, tuple[InputFile, ...]],
    logs: LogsConfig,
    before: dict[SourceName, Contract] | None = None,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    scan: Scan = scan_here,
) -> Inputs:
    """Read every header, scan text files, check the contract, cut into chunks.

    Args:
        files: the files of every source.
        logs: the settings.
        before: the contract of the dataset that is appended to.
        rows_per_chunk: rows of Parquet files that one task reads, about.
        scan: scans text files.

    Raises:
        UserError: naming file and column, if a file cannot be read, lacks a column, has it in a type that cannot be used or in
            another type than the first file (or `before`), if the quotes of a text file may have swallowed rows, or if the logs
            have no rows. Up to logs.max_unreadable_files files that cannot be read are left out instead.
    """
    sources = {name: columns for name, columns in columns_of(logs).items() if before is None or name in files}
    readable, unreadable = _readable_files(files, sources, logs, scan)
    contracts, chunks = dict(before or {}), list[InputChunk]()
    are_text = _groups_of_text(readable, sources, before)
    for name, columns in sources.items():
        earlier = before.get(name) if before else None
        types = [_agreed_type(readable[name], column, earlier, are_text) for column in columns]
        contracts[name] = Contract(columns, tuple(types))
        chunks += [c for r in readable[name] for c in _chunks(name, r.file, r.header, rows_per_chunk)]
        if not any(chunk.source == name for chunk in chunks):
            raise UserError(
                f"{name} {files[name][0].name}{_and_more(len(files[name]))}: no rows at all; check its path"
            )
    _check_joins(contracts)
    _check_tables(contracts, feature_specs(logs))
    profiles = {r.file.name: r.profile for found in readable.values() for r in found if r.profile is not None}
    spanning = {name: profile.spanning for name, profile in profiles.items() if profile.spanning.num_rows}
    return Inputs(files, contracts, tuple(chunks), unreadable, spanning)


def _readable_files(
    files: dict[SourceName, tuple[InputFile, ...]],
    sources: dict[SourceName, tuple[Column, ...]],
    logs: LogsConfig,
    scan: Scan,
) -> tuple[dict[SourceName, list[_Readable]], dict[str, str]]:
    """The files of each source that can be read, and why the others cannot, by name."""
    readable: dict[SourceName, list[_Readable]] = {}
    unreadable: dict[str, str] = {}
    for name, columns in sources.items():
        headers, broken = read_headers(files[name], columns[0].text, columns[0].text_setting)
        unreadable |= broken
        _check_budget(name, bool(headers), unreadable, logs)
        for file, header in headers:
            for column in columns:
                _check_name(file, header, column)
        readable[name] = [_Readable(file, header) for file, header in headers]
    texts = [(name, r) for name, found in readable.items() for r in found if r.file.format != "parquet"]
    scanned = scan(ScanJob(tuple((r.file, sources[name]) for name, r in texts))) if texts else []
    profiles = {(name, r.file.name): found for (name, r), found in zip(texts, scanned, strict=True)}
    for name, found in readable.items():
        kept = []
        for r in found:
            profile = profiles.get((name, r.file.name))
            if isinstance(profile, str):
                unreadable[r.file.name] = profile
            else:
                kept.append(_Readable(r.file, r.header, profile))
        readable[name] = kept
        _check_budget(name, bool(kept), unreadable, logs)
    return readable, unreadable


def _check_budget(source: SourceName, any_readable: bool, unreadable: dict[str, str], logs: LogsConfig) -> None:
    if len(unreadable) > logs.max_unreadable_files:
        raise UserError(too_many_unreadable(unreadable, logs.max_unreadable_files))
    if not any_readable:
        raise UserError(none_readable(source, unreadable))


def too_many_unreadable(unreadable: dict[str, str], allowed: int) -> str:
    """The message: the first cause, and what could be done."""
    first = next(iter(unreadable.values()))
    if allowed == 0:
        return first
    return f"{len(unreadable)} files cannot be read, and logs.max_unreadable_files allows {allowed}. The first: {first}"


def none_readable(source: SourceName, unreadable: dict[str, str]) -> str:
    """The message where every file would have to be left out."""
    return f"none of the files of {source} can be read. The first: {next(iter(unreadable.values()))}"


def _groups_of_text(
    readable: dict[SourceName, list[_Readable]],
    sources: dict[SourceName, tuple[Column, ...]],
    before: dict[SourceName, Contract] | None,
) -> dict[str, bool]:
    """Which groups of columns are text in text files: users, items, and the values of each table, over all sources.

    A declared type decides, then that of Parquet files and of an earlier contract, then every value of every text file.
    """
    fixed: dict[str, bool] = {}
    seen: dict[str, list[Seen]] = {}
    for name, columns in columns_of_all(sources, before):
        earlier = before.get(name) if before else None
        for column in columns:
            if column.group is None:
                continue
            types = [_header_type(r, column) for r in readable.get(name, ()) if r.profile is None]
            types += [earlier.type_of(column.name)] if earlier else []
            types = [found for found in types if not pa.types.is_null(found)]
            if column.type != "auto":
                fixed[column.group] = column.type == "text"
            elif column.separator is not None or types:
                fixed.setdefault(
                    column.group, column.separator is not None or pa.types.is_string(_value_type(types[0]))
                )
            seen.setdefault(column.group, []).extend(_seen(readable.get(name, ()), column))
    return {
        group: fixed.get(group, seen_together(values).kind not in ("nothing", "integer", "float", "boolean"))
        for group, values in seen.items()
    }


def columns_of_all(
    sources: dict[SourceName, tuple[Column, ...]], before: dict[SourceName, Contract] | None
) -> Iterator[tuple[SourceName, tuple[Column, ...]]]:
    """The columns of the sources that are read now, after those of an earlier contract."""
    yield from ((name, contract.columns) for name, contract in (before or {}).items() if name not in sources)
    yield from sources.items()


def _seen(readable: Sequence[_Readable], column: Column) -> list[Seen]:
    return [r.profile.columns[column.source] for r in readable if r.profile is not None]


def _value_type(found: pa.DataType) -> pa.DataType:
    return found.value_type if pa.types.is_list(found) else found


def _agreed_type(
    readable: Sequence[_Readable], column: Column, earlier: Contract | None, are_text: dict[str, bool]
) -> pa.DataType:
    """The one type of a column over all files."""
    agreed, origin = None, ""
    if earlier is not None and not pa.types.is_null(earlier.type_of(column.name)):
        agreed, origin = earlier.type_of(column.name), "what the dataset was made from"
    for r in readable:
        found = pa.null() if r.profile is not None else _header_type(r, column)
        if pa.types.is_null(found):  # a column without any value fits every type
            continue
        if agreed is None:
            check_usable(found, r.file, column)
            agreed, origin = found, r.file.name
        elif found != agreed:
            raise UserError(
                f'logs {r.file.name}: column "{column.source}" ({column.setting}) is {found} here and {agreed} in {origin}; '
                "write every file with the same type, or leave this one out"
            )
    seen = seen_together(_seen(readable, column))
    if agreed is None and seen.kind != "nothing":
        is_text = are_text.get(column.group or "", False) or (column.role == "id" and seen.kind == "boolean")
        agreed = text_type(column, seen.kind, is_text)
        check_usable(agreed, next(r.file for r in readable if r.profile is not None), column)
    elif agreed is None and earlier is not None:
        agreed = earlier.type_of(column.name)
    if agreed is None:
        if column.role not in ("id", "time", "label"):
            return pa.null()
        raise UserError(
            f'logs {readable[0].file.name}{_and_more(len(readable))}: column "{column.source}" ({column.setting}) holds no value; '
            f"set {column.setting} to the right column"
        )
    return agreed


def _header_type(readable: _Readable, column: Column) -> pa.DataType:
    return plain_type(readable.header.schema.field(column.source).type)


def _check_name(file: InputFile, header: Header, column: Column) -> None:
    """Raises UserError if the file does not have the column, or has it several times."""
    names = header.names
    if names.count(column.source) == 1:
        return
    if column.source in names:
        raise UserError(
            f'logs {file.name}: column "{column.source}" ({column.setting}) occurs {names.count(column.source)} times; '
            "rename one"
        )
    if file.format != "parquet":
        _check_header_line(file, names, column)
    nearest = difflib.get_close_matches(column.source, names, n=1, cutoff=0.5)
    remedy = f'did you mean "{nearest[0]}"? Then set' if nearest else "set"
    feature = column.role not in ("id", "time", "label")
    raise UserError(
        f'logs {file.name}: there is no column "{column.source}"; {remedy} {column.setting}{".column" if feature else ""} '
        f"to the right column (columns: {', '.join(names)})"
    )


def _check_header_line(file: InputFile, names: Sequence[str], column: Column) -> None:
    """Raises UserError if the first line of a text file looks like a row, or like columns with another delimiter."""
    shown = ", ".join(names)
    if len(names) == 1:
        for mark, called in OTHER_DELIMITERS.items():
            if mark in names[0]:
                raise UserError(
                    f'logs {file.name}: there is no column "{column.source}"; the first line is one column, {names[0]!r}, with the '
                    f"delimiter that was taken; set {column.text_setting}.delimiter = {mark!r} ({called})"
                )
    if names and all(re.fullmatch(r"[+-]?[\d.:T/ -]*\d[\d.:TZ/ -]*", name) for name in names):
        raise UserError(
            f'logs {file.name}: there is no column "{column.source}"; the first line ({shown}) looks like a row: write '
            "the names of the columns above it"
        )


def _check_joins(contracts: dict[SourceName, Contract]) -> None:
    """Users, items and times of all sources are compared, so they must be of one kind."""
    for name, contract in contracts.items():
        if name == "history" and contract.time_kind != contracts["logs"].time_kind:
            raise UserError(
                f"logs.history.time holds {contract.type_of('time')} and logs.time {contracts['logs'].type_of('time')}, so "
                "which of them is earlier cannot be told; write both as timestamps, or both as integers of one unit"
            )
        for column in contract.columns:
            if column.role != "id":
                continue
            ours, theirs = contract.stored(column.name), contracts["logs"].stored(column.name)
            if ours != theirs:
                raise UserError(
                    f'{column.setting}: column "{column.source}" holds {ours} in the files of {name} and {theirs} in the logs, '
                    f"so no {column.name} could be found in both; write both with the same type"
                )


def _check_tables(contracts: dict[SourceName, Contract], specs: Sequence[FeatureSpec]) -> None:
    """Features that share a table share its values, so these must be of one type. A column without any value fits all."""
    first = {"item": ("logs.item", contracts["logs"].stored("item"))}
    for spec in specs:
        contract = contracts[SOURCES[spec.owner]]
        if not isinstance(spec.config, CategoricalFeatureConfig) or pa.types.is_null(contract.type_of(spec.key)):
            continue
        stored = contract.stored(spec.key)
        values = stored.value_type if pa.types.is_list(stored) else stored
        setting, agreed = first.setdefault(str(spec.table), (spec.setting, values))
        if values != agreed:
            raise UserError(
                f'{spec.setting}: column "{spec.source}" holds {values}, and shares tables.{spec.table} with {setting}, which '
                f"holds {agreed}, so no value could be found in both; write both with the same type, or give this one a "
                "`table` of its own"
            )


def _chunks(source: SourceName, file: InputFile, header: Header, rows_per_chunk: int) -> Iterator[InputChunk]:
    if header.rows_of_groups is None:
        yield InputChunk(source, file, (), 0, None)
        return
    groups: list[int] = []
    first_row = num_rows = 0
    for group, rows in enumerate(header.rows_of_groups):
        if groups and num_rows + rows > rows_per_chunk:
            yield InputChunk(source, file, tuple(groups), first_row, num_rows)
            groups, first_row, num_rows = [], first_row + num_rows, 0
        groups.append(group)
        num_rows += rows
    if num_rows:
        yield InputChunk(source, file, tuple(groups), first_row, num_rows)


def _and_more(num_files: int) -> str:
    return f" and {num_files - 1} more" if num_files > 1 else ""
