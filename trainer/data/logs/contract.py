"""The contract of event logs: the one type that each column has in all files.

Parquet files name their types in headers. A dataset scan would cast silently, and fill a missing column with nulls. So
every file is compared with the first one, and on an append with the contract of the dataset. Text files name no types.
They are scanned (trainer/data/logs/text_scan.py) and read as the type of the Parquet files and earlier files, if there
are any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from trainer.data.logs.column_names import check_column_name
from trainer.data.logs.column_types import check_usable, plain_type, stored_type, text_type
from trainer.data.logs.columns import SOURCES, Column, SourceName, columns_of
from trainer.data.logs.config import CategoricalFeatureConfig, FeatureSpec, LogsConfig, feature_specs
from trainer.data.logs.files import InputFile, find_files
from trainer.data.logs.format_names import FormatSetting
from trainer.data.logs.formats import Header, reader_of
from trainer.data.logs.headers import read_headers
from trainer.data.logs.quotes import Spanning
from trainer.data.logs.text_scan import Scan, ScanJob, Seen, TextProfile, scan_here, seen_together
from trainer.errors import UserError

ROWS_PER_CHUNK = 1 << 20


@dataclass(frozen=True)
class Contract:
    """The columns of one source and the type of each in its files.

    Dictionaries and the kinds of strings and lists do not matter: types are plain (trainer/data/logs/column_types.py).
    """

    columns: tuple[Column, ...]
    types: tuple[pa.DataType, ...]

    def type_of(self, name: str) -> pa.DataType:
        """Return the type of a column in the files."""
        return next(agreed for column, agreed in zip(self.columns, self.types, strict=True) if column.name == name)

    def stored(self, name: str) -> pa.DataType:
        """Return the type in which reading stores a column."""
        column = next(column for column in self.columns if column.name == name)
        return stored_type(column, self.type_of(name))

    @property
    def time_kind(self) -> Literal["integer", "timestamp"]:
        """Kind of the times: integers, or timestamps (dates and text included)."""
        agreed = self.type_of("time")
        return "timestamp" if pa.types.is_temporal(agreed) or pa.types.is_string(agreed) else "integer"

    @property
    def event_schema(self) -> pa.Schema:
        """Schema of the rows in a RowBlock: the columns by name, and `row`."""
        stored = [
            (column.name, stored_type(column, agreed)) for column, agreed in zip(self.columns, self.types, strict=True)
        ]
        return pa.schema([*stored, ("row", pa.int64())])


@dataclass(frozen=True)
class InputChunk:
    """The input of one task: row groups of a Parquet file, or a whole text file."""

    # The source that the file belongs to.
    source: SourceName
    # The file.
    file: InputFile
    # Row groups of a Parquet file; empty for a text file.
    row_groups: tuple[int, ...]
    # Number of the first row in the file.
    first_row: int
    # Rows of the chunk; None for a text file, because its header does not list them.
    num_rows: int | None


@dataclass(frozen=True)
class LogInputs:
    """All sources, after reading headers and scanning text files."""

    # Files of each source.
    files: dict[SourceName, tuple[InputFile, ...]]
    # Contract of each source.
    contracts: dict[SourceName, Contract]
    # In the order of the log: files by name, then rows.
    chunks: tuple[InputChunk, ...]
    # Reason why a file was left out, by its name.
    unreadable: dict[str, str]
    # Rows over several lines in a text file, by its name.
    spanning: dict[str, Spanning] = field(default_factory=dict)

    @property
    def time_kind(self) -> Literal["integer", "timestamp"]:
        """Kind of the times of the events."""
        return self.contracts["logs"].time_kind


def find_inputs(logs: LogsConfig) -> dict[SourceName, tuple[InputFile, ...]]:
    """Find the files of every source. Raises UserError if a path leads to no file."""
    sources: list[tuple[SourceName, str, str | list[str], FormatSetting]] = [
        ("logs", "logs.path", logs.path, logs.format)
    ]
    for name, source in (("history", logs.history), ("items", logs.items), ("users", logs.users)):
        if source is not None:
            sources.append((name, f"logs.{name}.path", source.path, source.format))  # type: ignore[arg-type]
    return {name: find_files(path, format, setting) for name, setting, path, format in sources}


@dataclass(frozen=True)
class _Readable:
    """A readable file."""

    # The file.
    file: InputFile
    # Its header.
    header: Header
    # Result of the scan of a text file; None for a Parquet file.
    profile: TextProfile | None = None


def inspect_inputs(
    files: dict[SourceName, tuple[InputFile, ...]],
    logs: LogsConfig,
    before: dict[SourceName, Contract] | None = None,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    scan: Scan = scan_here,
) -> LogInputs:
    """Read every header, scan text files, check the contract, and cut files into chunks.

    Args:
        files: the files of every source.
        logs: the settings.
        before: the contract of the dataset that the logs are appended to.
        rows_per_chunk: approximate number of rows of Parquet files that one task reads.
        scan: scans text files.

    Raises:
        UserError: naming file and column, in these cases. A file cannot be read. A column is missing, of an unusable
            type, or of
            another type than in the first file (or `before`). The quotes of a text file may have swallowed rows. The logs have
            no rows. Up to logs.max_unreadable_files unreadable files are left out instead.
    """
    sources = {name: columns for name, columns in columns_of(logs).items() if before is None or name in files}
    readable, unreadable = _readable_files(files, sources, logs, scan)
    contracts = dict(before or {})
    chunks: list[InputChunk] = []
    are_text = _groups_of_text(readable, sources, before)
    for name, columns in sources.items():
        earlier = before.get(name) if before else None
        types = [_agreed_type(readable[name], column, earlier, are_text) for column in columns]
        contracts[name] = Contract(columns, tuple(types))
        chunks += [c for r in readable[name] for c in _chunks(name, r.file, r.header, rows_per_chunk)]
        if not any(chunk.source == name for chunk in chunks):
            raise UserError(f"{name} {files[name][0].name}{_and_more(len(files[name]))}: no rows; check its path")
    _check_joins(contracts)
    _check_tables(contracts, feature_specs(logs))
    profiles = {r.file.name: r.profile for group in readable.values() for r in group if r.profile is not None}
    spanning = {name: profile.spanning for name, profile in profiles.items() if profile.spanning.num_rows}
    return LogInputs(files, contracts, tuple(chunks), unreadable, spanning)


def _readable_files(
    files: dict[SourceName, tuple[InputFile, ...]],
    sources: dict[SourceName, tuple[Column, ...]],
    logs: LogsConfig,
    scan: Scan,
) -> tuple[dict[SourceName, list[_Readable]], dict[str, str]]:
    """Return the readable files of each source, and by name the reasons why the others cannot be read."""
    readable: dict[SourceName, list[_Readable]] = {}
    unreadable: dict[str, str] = {}
    for name, columns in sources.items():
        headers, broken = read_headers(files[name], columns[0].text, columns[0].text_setting)
        unreadable |= broken
        _check_budget(name, bool(headers), unreadable, logs)
        for file, header in headers:
            for column in columns:
                check_column_name(file, header, column)
        readable[name] = [_Readable(file, header) for file, header in headers]
    untyped = [(name, r) for name, group in readable.items() for r in group if not reader_of(r.file).has_types]
    scanned = scan(ScanJob(tuple((r.file, sources[name]) for name, r in untyped))) if untyped else []
    profiles = {(name, r.file.name): profile for (name, r), profile in zip(untyped, scanned, strict=True)}
    for name, group in readable.items():
        kept = []
        for r in group:
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
    """Return the message for too many unreadable files: the first reason, with the limit."""
    first = next(iter(unreadable.values()))
    if allowed == 0:
        return first
    return f"{len(unreadable)} files cannot be read, and logs.max_unreadable_files allows {allowed}. The first: {first}"


def none_readable(source: SourceName, unreadable: dict[str, str]) -> str:
    """Return the message for a source without any readable file."""
    return f"none of the files of {source} can be read. The first: {next(iter(unreadable.values()))}"


def _groups_of_text(
    readable: dict[SourceName, list[_Readable]],
    sources: dict[SourceName, tuple[Column, ...]],
    before: dict[SourceName, Contract] | None,
) -> dict[str, bool]:
    """Decide for each group of columns whether its values are text: users, items, and each table, over all sources.

    A declared type decides first. Next come the types of Parquet files and of an earlier contract, last the values of
    all text files.
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
            types = [arrow_type for arrow_type in types if not pa.types.is_null(arrow_type)]
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
    """Yield the columns of an earlier contract, then those of the sources read now."""
    yield from ((name, contract.columns) for name, contract in (before or {}).items() if name not in sources)
    yield from sources.items()


def _seen(readable: Sequence[_Readable], column: Column) -> list[Seen]:
    return [r.profile.columns[column.source] for r in readable if r.profile is not None]


def _value_type(arrow_type: pa.DataType) -> pa.DataType:
    return arrow_type.value_type if pa.types.is_list(arrow_type) else arrow_type


def _agreed_type(
    readable: Sequence[_Readable], column: Column, earlier: Contract | None, are_text: dict[str, bool]
) -> pa.DataType:
    """Return the one type of a column over all files."""
    agreed = None
    origin = ""
    if earlier is not None and not pa.types.is_null(earlier.type_of(column.name)):
        agreed = earlier.type_of(column.name)
        origin = "the logs of the dataset"
    for r in readable:
        own = pa.null() if r.profile is not None else _header_type(r, column)
        if pa.types.is_null(own):  # a column without any value fits every type
            continue
        if agreed is None:
            check_usable(own, r.file, column)
            agreed = own
            origin = r.file.name
        elif own != agreed:
            raise UserError(
                f'logs {r.file.name}: column "{column.source}" ({column.setting}) is {own} here and {agreed} in {origin}; '
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


def _check_joins(contracts: dict[SourceName, Contract]) -> None:
    """Check that users, items and times have one kind in all sources, because they are compared. Raises UserError."""
    for name, contract in contracts.items():
        if name == "history" and contract.time_kind != contracts["logs"].time_kind:
            raise UserError(
                f"logs.history.time holds {contract.type_of('time')} and logs.time {contracts['logs'].type_of('time')}, so "
                "they cannot be compared; write both as timestamps, or both as integers of one unit"
            )
        for column in contract.columns:
            if column.role != "id":
                continue
            own = contract.stored(column.name)
            of_logs = contracts["logs"].stored(column.name)
            if own != of_logs:
                raise UserError(
                    f'{column.setting}: column "{column.source}" holds {own} in the files of {name} and {of_logs} in the logs, '
                    f"so no {column.name} can match; write both with the same type"
                )


def _check_tables(contracts: dict[SourceName, Contract], specs: Sequence[FeatureSpec]) -> None:
    """Check that features of one table have values of one type. Raises UserError.

    They share the rows of the table, so their values are compared. A column without any value fits every type.
    """
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
                f"holds {agreed}, so no value can match; write both with the same type, or give this one its own `table`"
            )


def _chunks(source: SourceName, file: InputFile, header: Header, rows_per_chunk: int) -> Iterator[InputChunk]:
    if header.rows_of_groups is None:
        yield InputChunk(source, file, (), 0, None)
        return
    groups: list[int] = []
    first_row = 0
    num_rows = 0
    for group, rows in enumerate(header.rows_of_groups):
        if groups and num_rows + rows > rows_per_chunk:
            yield InputChunk(source, file, tuple(groups), first_row, num_rows)
            groups = []
            first_row += num_rows
            num_rows = 0
        groups.append(group)
        num_rows += rows
    if num_rows:
        yield InputChunk(source, file, tuple(groups), first_row, num_rows)


def _and_more(num_files: int) -> str:
    return f" and {num_files - 1} more" if num_files > 1 else ""
