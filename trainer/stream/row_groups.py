"""Row groups of a sequence dataset as packed arrays, with a bounded cache.

The invariant: values are views of Arrow's buffers, or gathered from them at once; no row is touched in Python. A row group
that later generations continued is put together here, so that nobody else knows of generations.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.dataset.features import decoder_of
from trainer.dataset.manifest import Manifest
from trainer.errors import UserError


@dataclass(frozen=True)
class Lists:
    """Values of which each event (or user) has several: entry i owns values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    def take(self, index: np.ndarray) -> "Lists":
        return Lists(*gather(self.values, self.offsets[index], self.offsets[index + 1]))


Column = np.ndarray | Lists


def take(column: Column, index: np.ndarray) -> Column:
    """Entries of a column by their place."""
    return column.take(index) if isinstance(column, Lists) else column[index]


def concatenate(columns: list[Column]) -> Column:
    """Columns of one kind as one."""
    if len(columns) == 1:
        return columns[0]
    if not isinstance(columns[0], Lists):
        return np.concatenate(columns)  # type: ignore[arg-type]
    lists: list[Lists] = columns  # type: ignore[assignment]
    bases = np.concatenate(([0], np.cumsum([piece.values.shape[0] for piece in lists])))
    offsets = [piece.offsets[:-1] + base for piece, base in zip(lists, bases, strict=False)]
    return Lists(np.concatenate([piece.values for piece in lists]), np.concatenate([*offsets, bases[-1:]]))


@dataclass(frozen=True)
class Impressions:
    """The impressions of packed histories: history r owns those from starts[r] to ends[r].

    items: (m,) int32 ids; times: (m,) int64; history_end: (m,) int64, the events of the history before the impression;
    labels, features: by name, an entry per impression; starts, ends: (rows,) int64.
    """

    items: np.ndarray
    times: np.ndarray
    history_end: np.ndarray
    labels: Mapping[str, np.ndarray]
    features: Mapping[str, Column]
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class PackedHistories:
    """The histories of one row group: history r owns items[starts[r]:ends[r]], its cuts are relative to starts[r].

    items: (n,) int32 ids; starts, ends, train_end, validation_end: (rows,) int64; users: Arrow array (rows,), as in the logs;
    times: (n,) int64 and features (an entry per event), user_features (an entry per row), where they were asked for.
    In a dataset for ranking the cuts are relative to impressions.starts[r].
    """

    items: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    train_end: np.ndarray
    validation_end: np.ndarray
    users: pa.Array | None
    times: np.ndarray | None = None
    features: Mapping[str, Column] = field(default_factory=dict)
    user_features: Mapping[str, Column] = field(default_factory=dict)
    impressions: Impressions | None = None

    @cached_property
    def num_bytes(self) -> int:
        return _num_bytes(self)


def _num_bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, PackedHistories | Impressions | Lists):
        return sum(_num_bytes(getattr(value, entry.name)) for entry in fields(value))
    return 0


def joined(pieces: list[PackedHistories]) -> PackedHistories:
    """Several row groups as one."""
    if len(pieces) == 1:
        return pieces[0]
    users = None if pieces[0].users is None else pa.concat_arrays([piece.users for piece in pieces])
    impressions = [piece.impressions for piece in pieces if piece.impressions is not None]
    return PackedHistories(
        items=np.concatenate([piece.items for piece in pieces]),
        **_stretches(pieces, [piece.items.size for piece in pieces]),
        train_end=np.concatenate([piece.train_end for piece in pieces]),
        validation_end=np.concatenate([piece.validation_end for piece in pieces]),
        users=users,
        times=None if pieces[0].times is None else np.concatenate([piece.times for piece in pieces]),  # type: ignore[misc]
        features=_joined_columns([piece.features for piece in pieces]),
        user_features=_joined_columns([piece.user_features for piece in pieces]),
        impressions=_joined_impressions(impressions) if impressions else None,
    )


def _joined_impressions(pieces: list[Impressions]) -> Impressions:
    return Impressions(
        items=np.concatenate([piece.items for piece in pieces]),
        times=np.concatenate([piece.times for piece in pieces]),
        history_end=np.concatenate([piece.history_end for piece in pieces]),
        labels=_joined_columns([piece.labels for piece in pieces]),  # type: ignore[arg-type]
        features=_joined_columns([piece.features for piece in pieces]),
        **_stretches(pieces, [piece.items.size for piece in pieces]),
    )


def _joined_columns(pieces: list[Mapping[str, Column]]) -> dict[str, Column]:
    return {name: concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _stretches(pieces: list[Any], sizes: list[int]) -> dict[str, np.ndarray]:
    bases = np.concatenate(([0], np.cumsum(sizes)))
    return {
        name: np.concatenate([getattr(piece, name) + base for piece, base in zip(pieces, bases, strict=False)])
        for name in ("starts", "ends")
    }


@dataclass(frozen=True)
class Wanted:
    """What a reader should read besides items and cuts: times, users, all features, or impressions.

    numbers: items as numbers of the catalogue, not as the model's ids.
    """

    users: bool = False
    times: bool = False
    features: bool = False
    impressions: bool = False
    numbers: bool = False


@dataclass(frozen=True)
class _Piece:
    """A Parquet row group that belongs to a row group of the dataset."""

    path: str
    number: int


@dataclass(frozen=True)
class _Group:
    pieces: tuple[_Piece, ...]
    cuts: _Piece | None  # of all rows; none takes them from the only piece
    first_row: int  # of the partition


class RowGroupReader:
    """Reads row groups by their number in the dataset, checks their page checksums, keeps recent ones up to `cache_bytes`."""

    def __init__(
        self, folder: Path, manifest: Manifest, wanted: Wanted = Wanted(), cache_bytes: int = 256 << 20
    ) -> None:
        self.folder = folder
        self.group_rows = manifest.group_rows
        self.first_rows = np.concatenate(([0], np.cumsum(self.group_rows))).astype(np.int64)
        self._wanted = wanted
        self._groups = _groups_of(manifest)
        self._ids = None if wanted.numbers or manifest.ids_are_numbers else _ids_of_numbers(folder, manifest)
        self._event_columns, self._user_columns = _feature_columns(manifest, wanted)
        self._decode = decoder_of(manifest.features, self._ids)
        self._labels = tuple(manifest.labels.get("names", ()))
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[int, PackedHistories] = OrderedDict()
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def read(self, groups: Iterable[int]) -> dict[int, PackedHistories]:
        """The wanted groups, from the cache or the files. Raises UserError naming a file that cannot be read."""
        wanted = [int(g) for g in groups]
        for group in wanted:
            if group in self._cached:
                self._cached.move_to_end(group)
            else:
                self._cached[group] = self._load(self._groups[group], self.group_rows[group])
        held = {group: self._cached[group] for group in wanted}
        total = sum(packed.num_bytes for packed in self._cached.values())
        while total > self._cache_bytes and len(self._cached) > len(held):
            # Wanted groups were moved to the end, so the oldest is never one of them here.
            total -= self._cached.popitem(last=False)[1].num_bytes
        return held

    def cuts(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """(train_end, validation_end) of a group's rows, (rows,) int64 each, without reading any event."""
        place = self._groups[group]
        return self._read_cuts(place.cuts or place.pieces[0])

    def _read_cuts(self, piece: _Piece) -> tuple[np.ndarray, np.ndarray]:
        table = self._table(piece, ["train_end", "validation_end"])
        return tuple(table.column(name).to_numpy().astype(np.int64) for name in ("train_end", "validation_end"))  # type: ignore[return-value]

    def _load(self, group: _Group, num_rows: int) -> PackedHistories:
        lists = ["item", *(["time"] if self._wanted.times else []), *self._event_columns]
        impressions: list[str] = []
        if self._wanted.impressions:
            impressions = ["impression.item", "impression.time", "impression.history_end"]
            impressions += [f"label.{name}" for name in self._labels]
            impressions += ["impression." + name.removeprefix("event.") for name in self._event_columns]
        once = [*(["user"] if self._wanted.users else []), *self._user_columns]
        own_cuts = [] if group.cuts is not None else ["train_end", "validation_end"]
        first = self._table(group.pieces[0], [*lists, *impressions, *once, *own_cuts])
        tables = [first, *(self._table(piece, [*lists, *impressions, "row"]) for piece in group.pieces[1:])]
        rows = [
            np.arange(num_rows),
            *(t.column("row").to_numpy().astype(np.int64) - group.first_row for t in tables[1:]),
        ]
        values, starts, ends = _merged(tables, rows, lists, num_rows)
        if group.cuts is not None:
            train_end, validation_end = self._read_cuts(group.cuts)
        else:
            train_end, validation_end = (first.column(name).to_numpy().astype(np.int64) for name in own_cuts)
        user_columns = {name: _plain(first.column(name)) for name in self._user_columns}
        return PackedHistories(
            items=self._item_ids(values["item"]),
            starts=starts,
            ends=ends,
            train_end=train_end,
            validation_end=validation_end,
            users=_array(first.column("user")) if self._wanted.users else None,
            times=values.get("time"),  # type: ignore[arg-type]
            features=self._decoded(values, self._event_columns, "event."),
            user_features=self._decoded(user_columns, self._user_columns, "user."),
            impressions=self._impressions(tables, rows, impressions, num_rows) if impressions else None,
        )

    def _impressions(
        self, tables: list[pa.Table], rows: list[np.ndarray], columns: list[str], num_rows: int
    ) -> Impressions:
        values, starts, ends = _merged(tables, rows, columns, num_rows)
        features = {"event." + name.removeprefix("impression."): column for name, column in values.items()}
        return Impressions(
            items=self._item_ids(values["impression.item"]),
            times=values["impression.time"],  # type: ignore[arg-type]
            history_end=values["impression.history_end"].astype(np.int64),  # type: ignore[union-attr]
            labels={name: values[f"label.{name}"] for name in self._labels},  # type: ignore[misc]
            features=self._decoded(features, self._event_columns, "event."),
            starts=starts,
            ends=ends,
        )

    def _item_ids(self, numbers: Column) -> np.ndarray:
        assert isinstance(numbers, np.ndarray)
        return numbers if self._ids is None else self._ids[numbers]

    def _decoded(self, values: Mapping[str, Column], columns: tuple[str, ...], prefix: str) -> dict[str, Column]:
        return {name.removeprefix(prefix): self._decoded_one(name, values[name]) for name in columns}

    def _decoded_one(self, name: str, column: Column) -> Column:
        decode: Callable[[np.ndarray], np.ndarray] = self._decode[name]
        if isinstance(column, Lists):
            return replace(column, values=decode(column.values))
        return decode(column)

    def _table(self, piece: _Piece, columns: list[str]) -> pa.Table:
        try:
            return self._open(piece.path).read_row_group(piece.number, columns=list(dict.fromkeys(columns)))
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"dataset {self.folder / piece.path}, row group {piece.number}: cannot be read ({error}); "
                "the file is damaged or gone: delete the dataset folder and run `shoal prepare`"
            ) from error

    def _open(self, path: str) -> pq.ParquetFile:
        if path not in self._files:
            self._files[path] = pq.ParquetFile(self.folder / path, page_checksum_verification=True)
            if len(self._files) > 64:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]


def _groups_of(manifest: Manifest) -> list[_Group]:
    """Where the pieces of every row group of the dataset lie, oldest first."""
    pieces: dict[int, list[_Piece]] = {}
    partition: dict[int, int] = {}
    for part in manifest.parts:
        for number, piece in enumerate(part.row_groups):
            pieces.setdefault(piece.group, []).append(_Piece(part.path, number))
            partition[piece.group] = part.partition
    cuts = {file.partition: file.path for file in manifest.cuts}
    rows, groups = manifest.group_rows, []
    first_row: dict[int, int] = {}
    place: dict[int, int] = {}  # of a group within its partition
    for group in range(len(rows)):
        home = partition[group]
        number = place.setdefault(home, 0)
        path = cuts.get(home)
        cut = _Piece(path, number) if path is not None else None
        groups.append(_Group(tuple(pieces[group]), cut, first_row.setdefault(home, 0)))
        first_row[home] += rows[group]
        place[home] += 1
    return groups


def _ids_of_numbers(folder: Path, manifest: Manifest) -> np.ndarray:
    """The id of every number of the catalogue, number 0 (no item) included."""
    ids = pq.read_table(folder / manifest.vocabulary.path, columns=["id"]).column("id").to_numpy()
    return np.concatenate((np.zeros(1, np.int32), ids.astype(np.int32)))


def _feature_columns(manifest: Manifest, wanted: Wanted) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not wanted.features:
        return (), ()
    events = tuple(feature.column for feature in manifest.features if feature.owner == "event")
    users = tuple(feature.column for feature in manifest.features if feature.owner == "user")
    return events, users


def _merged(
    tables: list[pa.Table], rows: list[np.ndarray], columns: list[str], num_rows: int
) -> tuple[dict[str, Column], np.ndarray, np.ndarray]:
    """The lists of all generations, one after the other for each row: (values by column, starts, ends (num_rows,)).

    rows[g]: which row each entry of tables[g] continues.
    """
    offsets = [_array(table.column(columns[0])).offsets.to_numpy().astype(np.int64) for table in tables]
    if len(tables) == 1:
        base = offsets[0][0]
        values = {name: _list_values(tables[0].column(name)) for name in columns}
        return values, offsets[0][:-1] - base, offsets[0][1:] - base
    bases = np.concatenate(([0], np.cumsum([o[-1] - o[0] for o in offsets])))
    starts = np.concatenate([o[:-1] - o[0] + base for o, base in zip(offsets, bases, strict=False)])
    ends = np.concatenate([o[1:] - o[0] + base for o, base in zip(offsets, bases, strict=False)])
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    index, packed = gather(np.arange(bases[-1]), starts[order], ends[order])
    bounds = packed[np.searchsorted(row[order], np.arange(num_rows + 1))]
    pieces = {name: [_list_values(table.column(name)) for table in tables] for name in columns}
    return {name: take(concatenate(found), index) for name, found in pieces.items()}, bounds[:-1], bounds[1:]


def _array(column: pa.ChunkedArray) -> pa.Array:
    """pyarrow combines to an array or to chunks, depending on their number."""
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _list_values(column: pa.ChunkedArray) -> Column:
    """The entries of all lists of a column, one after another; the column's own offsets are taken elsewhere."""
    return _column_of(_array(column).flatten())


def _plain(column: pa.ChunkedArray) -> Column:
    return _column_of(_array(column))


def _column_of(values: pa.Array) -> Column:
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
        vectors: np.ndarray = values.flatten().to_numpy().reshape(-1, width)
        return vectors
    if pa.types.is_list(values.type):
        offsets = values.offsets.to_numpy().astype(np.int64)
        return Lists(values.flatten().to_numpy(), offsets - offsets[0])
    plain: np.ndarray = values.to_numpy(zero_copy_only=False)
    return plain


def gather(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pack the stretches values[starts[i]:ends[i]] one after another: (packed values, offsets (n + 1,) int64)."""
    lengths = ends - starts
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return values[index], offsets
