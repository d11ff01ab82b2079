"""The Parquet files of a dataset: opened on demand, and checked while they are read.

The invariant: the content is that of the manifest, or there is an error that names the file. When a file is opened, its
size, row groups and column types are compared with the manifest. At every read it must still be the same file, and
every page must match its checksum.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.dataset.manifest import Feature, Manifest
from trainer.errors import UserError
from trainer.storage.files import refusal_cause
from trainer.storage.objects.paths import ObjectPath
from trainer.storage.objects.streams import translated
from trainer.storage.parquet import open_parquet
from trainer.storage.retries import Retries

T = TypeVar("T")

MAX_OPEN = 128  # opening reads the footer, which takes longer than reading a small row group
MAX_FOOTER_BYTES = 64 << 20  # of footers of objects that are kept
BULK_EVENTS = 1 << 18  # approximate events of one read call, which costs as much as some thousand events
CUTS = ("train_end", "validation_end")
DEFAULT_RETRIES = Retries(4, 0.5)  # as the settings of [storage] by default


@dataclass(frozen=True)
class Piece:
    """A Parquet row group that belongs to a row group of the dataset."""

    # Path of the file.
    path: str
    # Number of the row group in the file.
    number: int


@dataclass(frozen=True)
class _Expected:
    """Properties of a file according to the manifest."""

    # Size.
    num_bytes: int
    # Rows of each row group; None if the manifest does not list them.
    group_rows: tuple[int, ...] | None = None
    # Events of each row group.
    group_events: tuple[int, ...] = ()


class PartFiles:
    """Reader of columns of row groups. One thread at a time."""

    def __init__(
        self, folder: Path, manifest: Manifest, columns: Iterable[str], retries: Retries = DEFAULT_RETRIES
    ) -> None:
        """Prepare to read columns.

        Args:
            folder: The dataset.
            manifest: Its manifest.
            columns: The columns, of which each file has some; their types are checked.
            retries: The attempts after errors of the storage that may pass.
        """
        self.folder = folder
        self._retries = retries
        self._columns = frozenset(columns)
        self._types = column_types(manifest)
        self._expected = {
            part.path: _Expected(
                part.num_bytes,
                tuple(group.num_rows for group in part.row_groups),
                tuple(group.num_events for group in part.row_groups),
            )
            for part in manifest.parts
        } | {cuts.path: _Expected(cuts.num_bytes) for cuts in manifest.cuts}
        self._required = _required_columns(manifest, self._columns)
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._footers: dict[str, pq.FileMetaData] = {}
        self._footer_bytes = 0
        self._first_seen: dict[str, tuple[int, ...]] = {}

    def check(self, share: int = 0, num_shares: int = 1) -> None:
        """Open the files of one share. Raises UserError naming a file, and if applicable its column, that differs."""
        for path in list(self._expected)[share::num_shares]:
            try:
                self._retried(path, lambda path=path: self._file(path))  # type: ignore[misc]
            except (OSError, pa.ArrowException, _ChangedError) as error:
                raise self._unreadable(path, error) from error

    def read(self, piece: Piece, columns: list[str]) -> pa.Table:
        """Read a row group. Raises UserError naming file and row group if it cannot be read, or the file has changed."""
        try:
            return self._read(piece.path, [piece.number], columns)
        except (OSError, pa.ArrowException, _ChangedError) as error:
            raise self._unreadable(f"{piece.path}, row group {piece.number}", error) from error

    def read_together(self, path: str, numbers: list[int], columns: list[str]) -> list[pa.Table]:
        """Read row groups of a part, a table for each. Raises UserError naming file and row group."""
        expected = self._expected[path]
        assert expected.group_rows is not None
        events = np.cumsum([expected.group_events[number] for number in numbers])
        tables: list[pa.Table] = []
        for few in np.split(np.asarray(numbers), np.flatnonzero(np.diff(events // BULK_EVENTS)) + 1):
            try:
                whole = self._read(path, few.tolist(), columns)
            except (OSError, pa.ArrowException, _ChangedError):
                tables += [self.read(Piece(path, number), columns) for number in few.tolist()]  # which one is it?
                continue
            rows = [expected.group_rows[number] for number in few.tolist()]
            tables += [whole.slice(last - count, count) for last, count in zip(np.cumsum(rows), rows, strict=True)]
        return tables

    def _read(self, path: str, numbers: list[int], columns: list[str]) -> pa.Table:
        names = list(dict.fromkeys(columns))
        # One thread: reading runs in parallel to training, which uses the other cores.
        return self._retried(path, lambda: self._file(path).read_row_groups(numbers, columns=names, use_threads=False))

    def read_several(self, path: str, numbers: list[int], columns: list[str]) -> pa.Table:
        """Read columns of some row groups of a file as one table. Raises UserError naming the file."""
        try:
            return self._read(path, numbers, columns)
        except (OSError, pa.ArrowException, _ChangedError) as error:
            raise self._unreadable(path, error) from error

    def _retried(self, path: str, work: Callable[[], T]) -> T:
        """Repeat work on a file after errors that may pass. Each further attempt opens the file again."""

        def close(error: OSError, wait: float) -> None:
            file = self._open.pop(path, None)
            if file is not None:
                with suppress(OSError):
                    file.close()

        def attempt() -> T:
            with translated(self.folder / path):
                return work()

        return self._retries.run(attempt, close)

    def _unreadable(self, where: str, error: Exception) -> UserError:
        cause = refusal_cause(error)
        if cause is not None:
            return UserError(f"dataset {self.folder / where}: cannot be read: {cause}")
        return UserError(
            f"dataset {self.folder / where}: cannot be read ({error}); "
            "the file is damaged, missing or was changed: delete the dataset folder and run `shoal prepare`"
        )

    def _file(self, path: str) -> pq.ParquetFile:
        self._check_unchanged(path)
        if path not in self._open:
            footer = self._footers.get(path)
            file = open_parquet(self.folder / path, page_checksum_verification=True, metadata=footer)
            if footer is None:
                self._check_content(path, file)
                self._keep_footer(path, file.metadata)
            self._open[path] = file
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]

    def _keep_footer(self, path: str, footer: pq.FileMetaData) -> None:
        """Keep the footer of an object, so that it is read once although the object is opened again and again."""
        if isinstance(self.folder, ObjectPath) and self._footer_bytes < MAX_FOOTER_BYTES:
            self._footers[path] = footer
            self._footer_bytes += footer.serialized_size

    def _check_unchanged(self, path: str) -> None:
        """Check that the name still refers to the opened file, which stays readable after it was deleted or replaced."""
        whole = self.folder / path
        if isinstance(whole, ObjectPath) and path in self._first_seen:
            return  # a request for each read; an opened object that is replaced fails the check of its pages
        status = whole.stat()
        now = (status.st_size, status.st_mtime_ns, status.st_ino)
        expected = self._expected[path].num_bytes
        if path not in self._first_seen and status.st_size != expected:
            raise UserError(
                f"dataset {whole}: has {status.st_size:,} bytes, the manifest says {expected:,}: truncated or "
                "rewritten; delete the dataset folder and run `shoal prepare`"
            )
        if self._first_seen.setdefault(path, now) != now:
            raise _ChangedError("it was rewritten while in use")

    def _check_content(self, path: str, file: pq.ParquetFile) -> None:
        names = self._required[path]
        schema = file.schema_arrow
        for name in names:
            allowed = self._types.get(name)
            actual = type_name(schema.field(name).type) if name in schema.names else None
            if actual is None or (allowed is not None and actual not in allowed):
                has = "is missing" if actual is None else f"has the type {actual}"
                should = f", expected {' or '.join(allowed)}" if allowed is not None else ""
                raise UserError(
                    f"dataset {self.folder / path}: column {name!r} {has}{should}: the file is not the one that was "
                    "prepared; delete the dataset folder and run `shoal prepare`"
                )
            self._types[name] = (actual,)  # if several types are allowed, the files still have to agree
        expected = self._expected[path].group_rows
        if expected is not None and _group_rows(file) != expected:
            raise UserError(
                f"dataset {self.folder / path}: its row groups are not those of the manifest: rewritten; "
                "delete the dataset folder and run `shoal prepare`"
            )


def _group_rows(file: pq.ParquetFile) -> tuple[int, ...]:
    metadata = file.metadata
    return tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))


class _ChangedError(Exception):
    """An error: the file under a name is another one than before."""


def column_types(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Return the types that every column of a part may have, by name (trainer/data/dataset/manifest.py)."""
    types: dict[str, tuple[str, ...]] = dict.fromkeys((*CUTS, "row"), ("int32",))
    types |= {"user": ("int64", "string"), "item": ("list<int32>",), "time": ("list<int64>",)}
    types |= {"impression.item": ("list<int32>",), "impression.time": ("list<int64>",)}
    types["impression.history_end"] = ("list<int32>",)
    types |= {f"label.{name}": ("list<float>", "list<double>") for name in manifest.labels.get("names", ())}
    for feature in manifest.features:
        plain = _feature_types(feature)
        if feature.owner == "event":
            types[feature.column] = types[f"impression.{feature.name}"] = tuple(f"list<{name}>" for name in plain)
        elif feature.owner == "user":
            types[feature.column] = plain
    return types


def _feature_types(feature: Feature) -> tuple[str, ...]:
    match feature.kind:
        case "categorical":
            return ("int32", "int64")
        case "categorical_list":
            return ("list<int32>", "list<int64>")
        case "timestamp":
            return ("int64",)
        case "vector":
            return (f"list<float>[{feature.dim}]",)
        case _:
            return ("float",)


def type_name(arrow_type: pa.DataType) -> str:
    """Return the name of a type, without the names that Parquet gives to the entries of lists."""
    if pa.types.is_fixed_size_list(arrow_type):
        return f"list<{type_name(arrow_type.value_type)}>[{arrow_type.list_size}]"
    if pa.types.is_list(arrow_type):
        return f"list<{type_name(arrow_type.value_type)}>"
    return str(arrow_type)


def _required_columns(manifest: Manifest, columns: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Return the columns that each file must have, among those that are read."""
    with_cuts = {file.partition for file in manifest.cuts}
    required: dict[str, tuple[str, ...]] = {file.path: CUTS for file in manifest.cuts}
    for part in manifest.parts:
        names = set(columns) | ({"row"} if part.generation else set())
        if part.generation or part.partition in with_cuts:
            names -= set(CUTS)
        required[part.path] = tuple(sorted(names))
    return required
