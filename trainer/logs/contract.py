"""The contract of event logs: which columns are read from which files, and the one type that each has in all of them.

Nothing is read here but headers (and the first block of text files, which have none). A dataset scan would cast silently,
and fill a missing column with nulls; so every file is compared with the first, and on an append with what the dataset was
made from.
"""

import difflib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from trainer.errors import UserError
from trainer.logs.config import (
    CategoricalFeatureConfig,
    FeatureSpec,
    Format,
    LogsConfig,
    NumericFeatureConfig,
    Owner,
    TimestampFeatureConfig,
    VectorFeatureConfig,
    feature_specs,
)
from trainer.logs.files import InputFile, UnreadableFileError, explaining, find_files

ROWS_PER_CHUNK = 1 << 20
HEADER_BYTES = 1 << 20  # the types of a CSV file are those of its first block of this size
HEADER_THREADS = 16
SourceName = Literal["logs", "history", "items", "users"]
Role = Literal["id", "time", "label", "categorical", "numeric", "timestamp", "vector"]
SOURCES: dict[Owner, SourceName] = {"event": "logs", "item": "items", "user": "users"}  # where whose features are


@dataclass(frozen=True)
class Column:
    """A column that is read. name: what it is called from here on; source: in the files; setting: that names it."""

    name: str
    source: str
    setting: str
    role: Role
    separator: str | None = None
    dim: int | None = None


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
        return _stored(column, self.type_of(name))

    @property
    def time_kind(self) -> Literal["integer", "timestamp"]:
        return "timestamp" if pa.types.is_temporal(self.type_of("time")) else "integer"

    @property
    def event_schema(self) -> pa.Schema:
        """Of the rows in a Block: the columns by name, and `row`."""
        stored = [(column.name, _stored(column, found)) for column, found in zip(self.columns, self.types, strict=True)]
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


@dataclass(frozen=True)
class _Header:
    """names: of the columns, decoded at once, because those of a damaged header may be no text."""

    schema: pa.Schema
    names: tuple[str, ...]
    rows_of_groups: tuple[int, ...] | None  # None: a CSV file, which does not say


def find_inputs(logs: LogsConfig) -> dict[SourceName, tuple[InputFile, ...]]:
    """The files of every source. Raises UserError if a path leads to none."""
    sources: list[tuple[SourceName, str, str | list[str], Format]] = [("logs", "logs.path", logs.path, logs.format)]
    for name, source in (("history", logs.history), ("items", logs.items), ("users", logs.users)):
        if source is not None:
            sources.append((name, f"logs.{name}.path", source.path, source.format))  # type: ignore[arg-type]
    return {name: find_files(path, format, setting) for name, setting, path, format in sources}


def columns_of(logs: LogsConfig) -> dict[SourceName, tuple[Column, ...]]:
    """What is read from each source."""
    specs = feature_specs(logs)

    def features(owner: str) -> list[Column]:
        return [_feature_column(spec) for spec in specs if spec.owner == owner]

    labels = [Column(f"label.{name}", name, "logs.labels", "label") for name in logs.labels]
    columns: dict[SourceName, list[Column]] = {
        "logs": [
            Column("user", logs.user, "logs.user", "id"),
            Column("item", logs.item, "logs.item", "id"),
            Column("time", logs.time, "logs.time", "time"),
            *labels,
            *features("event"),
        ]
    }
    if logs.history is not None:
        columns["history"] = [
            Column("user", logs.history.user, "logs.history.user", "id"),
            Column("item", logs.history.item, "logs.history.item", "id"),
            Column("time", logs.history.time, "logs.history.time", "time"),
        ]
    if logs.items is not None:
        columns["items"] = [Column("item", logs.items.item, "logs.items.item", "id"), *features("item")]
    if logs.users is not None:
        columns["users"] = [Column("user", logs.users.user, "logs.users.user", "id"), *features("user")]
    return {name: tuple(found) for name, found in columns.items()}


def _feature_column(spec: FeatureSpec) -> Column:
    match spec.config:
        case CategoricalFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "categorical", spec.config.separator)
        case NumericFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "numeric")
        case TimestampFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "timestamp")
        case VectorFeatureConfig():
            return Column(spec.key, spec.source, spec.setting, "vector", dim=spec.config.dim)


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
        headers, broken = _read_headers(files[name])
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


def _read_headers(files: Sequence[InputFile]) -> tuple[list[tuple[InputFile, _Header]], dict[str, str]]:
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        results = list(pool.map(_header_or_cause, files))
    headers = [(f, found) for f, found in zip(files, results, strict=True) if isinstance(found, _Header)]
    return headers, {f.name: found for f, found in zip(files, results, strict=True) if isinstance(found, str)}


def _header_or_cause(file: InputFile) -> _Header | str:
    try:
        return _read_header(file)
    except UnreadableFileError as error:
        return str(error)


def _read_header(file: InputFile) -> _Header:
    with explaining(file):
        if file.format == "parquet":
            with open_parquet(file) as parquet:
                metadata = parquet.metadata
                rows = tuple(metadata.row_group(k).num_rows for k in range(metadata.num_row_groups))
                return _Header(parquet.schema_arrow, tuple(parquet.schema_arrow.names), rows)
        with open_csv(file, HEADER_BYTES) as reader:
            schema = pa.schema([field.with_type(_widened(field.type)) for field in reader.schema])
            return _Header(schema, tuple(schema.names), None)


def open_parquet(file: InputFile) -> pq.ParquetFile:
    return pq.ParquetFile(file.filesystem().open_input_file(file.path), page_checksum_verification=True)


def open_csv(
    file: InputFile, block_bytes: int, convert: pacsv.ConvertOptions | None = None
) -> pacsv.CSVStreamingReader:
    return pacsv.open_csv(
        file.filesystem().open_input_stream(file.path),  # decompresses by the file's ending
        read_options=pacsv.ReadOptions(use_threads=False, block_size=block_bytes),
        parse_options=pacsv.ParseOptions(delimiter="\t" if file.format == "tsv" else ","),
        convert_options=convert,
    )


def _widened(inferred: pa.DataType) -> pa.DataType:
    """Dates or whole seconds in a CSV file's first block do not promise that fractions will not follow."""
    if pa.types.is_date(inferred):
        return pa.timestamp("us")
    if pa.types.is_timestamp(inferred) and inferred.unit == "s":
        return pa.timestamp("us", inferred.tz)
    return inferred


def _agreed_type(headers: list[tuple[InputFile, _Header]], column: Column, earlier: Contract | None) -> pa.DataType:
    """The one type of a column over all files."""
    agreed, origin = None, ""
    if earlier is not None:
        agreed, origin = earlier.type_of(column.name), "what the dataset was made from"
    for file, header in headers:
        found = _type_of(file, header, column)
        if pa.types.is_null(found):  # a column without any value fits every type
            continue
        if agreed is None:
            _check_usable(found, file, column)
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


def _type_of(file: InputFile, header: _Header, column: Column) -> pa.DataType:
    names = header.names
    if names.count(column.source) == 1:
        found = _plain_type(header.schema.field(column.source).type)
        return found if file.format == "parquet" else _meant_type(found, column)
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


def _meant_type(inferred: pa.DataType, column: Column) -> pa.DataType:
    """Text files say no types: what looks like a number or a moment may be meant as text."""
    moment = pa.types.is_temporal(inferred) and column.role in ("id", "categorical")
    return pa.string() if moment or column.separator is not None else inferred


def _plain_type(found: pa.DataType) -> pa.DataType:
    """Dictionaries are taken as their values, large and view types as plain ones, lists without any entry as no value."""
    types = pa.types
    if types.is_dictionary(found):
        return _plain_type(found.value_type)
    if types.is_large_string(found) or types.is_string_view(found):
        return pa.string()
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        inner = _plain_type(found.value_type)
        return inner if types.is_null(inner) else pa.list_(inner)
    return found


def _check_usable(found: pa.DataType, file: InputFile, column: Column) -> None:
    types = pa.types
    number = types.is_integer(found) or types.is_floating(found)
    moment = number or types.is_timestamp(found) or types.is_date(found)
    value = types.is_integer(found) or types.is_string(found)
    inner = found.value_type if types.is_list(found) else None
    match column.role:
        case "id":
            usable, wanted = value, "an integer or a string"
        case "time":
            usable, wanted = moment, "an integer, a timestamp or a date"
        case "label" | "numeric":
            usable, wanted = number or types.is_boolean(found) or types.is_decimal(found), "a number"
        case "timestamp":
            usable, wanted = moment or types.is_string(found), "an integer, a timestamp, a date or an ISO date as text"
        case "categorical" if column.separator is not None:
            usable, wanted = types.is_string(found), "a string, as `separator` is set"
        case "categorical":
            value = value or types.is_floating(found) or types.is_boolean(found)
            usable = value or (inner is not None and (types.is_integer(inner) or types.is_string(inner)))
            wanted = "an integer, a string or a list of them"
        case "vector":
            usable = inner is not None and (types.is_integer(inner) or types.is_floating(inner))
            wanted = f"a list of {column.dim} numbers"
    if not usable:
        raise UserError(
            f'logs {file.name}: column "{column.source}" ({column.setting}) is {found}, and must be {wanted}; '
            "take another column, or convert this one"
        )


def _stored(column: Column, agreed: pa.DataType) -> pa.DataType:
    """What reading turns a column into."""
    types = pa.types
    text = types.is_string(agreed)
    match column.role:
        case "id":
            return pa.string() if text else pa.int64()
        case "time" | "timestamp":
            return pa.int64()
        case "label" | "numeric":
            return pa.float32()
        case "vector":
            return pa.list_(pa.float32())
        case "categorical":
            if column.separator is not None:
                return pa.list_(pa.string())
            if types.is_list(agreed):
                return pa.list_(pa.string() if types.is_string(agreed.value_type) else pa.int64())
            return pa.string() if text else pa.int64()


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


def _chunks(source: SourceName, file: InputFile, header: _Header, rows_per_chunk: int) -> Iterator[InputChunk]:
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
