"""The contract of event logs: the one type that each column has in all files.

Nothing is read here but headers. A dataset scan would cast silently, and fill a missing column with nulls; so every file is
compared with the first, and on an append with what the dataset was made from.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from trainer.errors import UserError
from trainer.logs.column_types import check_usable, meant_type, plain_type, stored_type
from trainer.logs.columns import SOURCES, Column, SourceName, columns_of
from trainer.logs.config import CategoricalFeatureConfig, FeatureSpec, Format, LogsConfig, feature_specs
from trainer.logs.files import InputFile, find_files
from trainer.logs.headers import Header, read_headers

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
        return "timestamp" if pa.types.is_temporal(self.type_of("time")) else "integer"

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
    """All sources after their headers were read: chunks in the order of the log (files by name, then rows).

    unreadable: why files were left out, by their names.
    """

    files: dict[SourceName, tuple[InputFile, ...]]
    contracts: dict[SourceName, Contract]
    chunks: tuple[InputChunk, ...]
    unreadable: dict[str, str]

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


def inspect_inputs(
    files: dict[SourceName, tuple[InputFile, ...]],
    logs: LogsConfig,
    before: dict[SourceName, Contract] | None = None,
    rows_per_chunk: int = ROWS_PER_CHUNK,
) -> Inputs:
    """Read every header, check the contract, cut into chunks; no data is read but the first block of CSV files.

    `before`: the contract of the dataset that is appended to. Raises UserError naming file and column if a file cannot be
    read, lacks a column, has it in a type that cannot be used or in another type than the first file (or `before`), or
    if the logs have no rows. Up to logs.max_unreadable_files files that cannot be read are left out instead.
    """
    contracts = dict(before or {})
    chunks: list[InputChunk] = []
    unreadable: dict[str, str] = {}
    for name, columns in columns_of(logs).items():
        if before is not None and name not in files:  # nothing new of this source
            continue
        headers, broken = read_headers(files[name])
        unreadable |= broken
        if len(unreadable) > logs.max_unreadable_files:
            raise UserError(too_many_unreadable(unreadable, logs.max_unreadable_files))
        if not headers:
            raise UserError(none_readable(name, unreadable))
        earlier = before.get(name) if before else None
        types = [_agreed_type(headers, column, earlier) for column in columns]
        contracts[name] = Contract(columns, tuple(types))
        found = [c for file, header in headers for c in _chunks(name, file, header, rows_per_chunk)]
        if not found:
            raise UserError(
                f"{name} {files[name][0].name}{_and_more(len(files[name]))}: no rows at all; check its path"
            )
        chunks += found
    _check_joins(contracts)
    _check_tables(contracts, feature_specs(logs))
    return Inputs(files, contracts, tuple(chunks), unreadable)


def too_many_unreadable(unreadable: dict[str, str], allowed: int) -> str:
    """The message: the first cause, and what could be done."""
    first = next(iter(unreadable.values()))
    if allowed == 0:
        return first
    return f"{len(unreadable)} files cannot be read, and logs.max_unreadable_files allows {allowed}. The first: {first}"


def none_readable(source: SourceName, unreadable: dict[str, str]) -> str:
    """The message where every file would have to be left out."""
    return f"none of the files of {source} can be read. The first: {next(iter(unreadable.values()))}"


def _agreed_type(headers: list[tuple[InputFile, Header]], column: Column, earlier: Contract | None) -> pa.DataType:
    """The one type of a column over all files."""
    agreed, origin = None, ""
    if earlier is not None:
        agreed, origin = earlier.type_of(column.name), "what the dataset was made from"
    for file, header in headers:
        found = _type_of(file, header, column)
        if pa.types.is_null(found):  # a column without any value fits every type
            continue
        if agreed is None:
            check_usable(found, file, column)
            agreed, origin = found, file.name
        elif found != agreed and file.format == "parquet":  # a CSV file has no types: it is read as the agreed one
            raise UserError(
                f'logs {file.name}: column "{column.source}" ({column.setting}) is {found} here and {agreed} in {origin}; '
                "write every file with the same type, or leave this one out"
            )
    if agreed is None:
        if column.role not in ("id", "time", "label"):
            return pa.null()
        raise UserError(
            f'logs {headers[0][0].name}{_and_more(len(headers))}: column "{column.source}" ({column.setting}) holds no value; '
            f"set {column.setting} to the right column"
        )
    return agreed


def _type_of(file: InputFile, header: Header, column: Column) -> pa.DataType:
    names = header.names
    if names.count(column.source) == 1:
        found = plain_type(header.schema.field(column.source).type)
        return found if file.format == "parquet" else meant_type(found, column)
    if column.source in names:
        raise UserError(
            f'logs {file.name}: column "{column.source}" ({column.setting}) occurs {names.count(column.source)} times; '
            "rename one"
        )
    nearest = difflib.get_close_matches(column.source, names, n=1, cutoff=0.5)
    remedy = f'did you mean "{nearest[0]}"? Then set' if nearest else "set"
    feature = column.role not in ("id", "time", "label")
    raise UserError(
        f'logs {file.name}: there is no column "{column.source}"; {remedy} {column.setting}{".column" if feature else ""} '
        f"to the right column (columns: {', '.join(names)})"
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
