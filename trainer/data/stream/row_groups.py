"""Row groups of a sequence dataset as packed arrays, with a bounded cache.

The invariant: values are views of Arrow's buffers, or gathered from them at once; no row is processed in Python. A row
group that later generations continued is assembled here, so other modules know nothing of generations.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.data.dataset.features import decoder_of
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.vocabulary import ids_of_numbers
from trainer.data.stream.columns import Column, Lists, concatenate, stretches, take
from trainer.data.stream.packed import PackedHistories, PackedImpressions
from trainer.data.stream.part_files import CUTS, DEFAULT_RETRIES, PartFiles, Piece
from trainer.storage.retries import Retries


@dataclass(frozen=True)
class ColumnSelection:
    """Columns to read besides items and cuts."""

    # Whether raw ids of users are read.
    users: bool = False
    # Whether times are read.
    times: bool = False
    # Whether features of events, users and impressions are read: all, none, or the named columns ("event.NAME",
    # "user.NAME", "impression.NAME").
    features: bool | frozenset[str] = False
    # Whether impressions are read.
    impressions: bool = False
    # Whether items are numbers of the catalogue instead of the model's ids.
    numbers: bool = False
    # Whether items that the training part does not know have ids after the known ones instead of 0.
    unknown: bool = False


@dataclass(frozen=True)
class _Group:
    # Its pieces, the oldest first.
    """A row group of the dataset."""

    pieces: tuple[Piece, ...]
    # Piece with the cuts of all rows; None if they are in the only piece.
    cuts: Piece | None  # of all rows; none takes them from the only piece
    # Number of its first row in the partition.
    first_row: int  # of the partition


class RowGroupReader:
    """Reader of row groups by their number in the dataset. It checks page checksums and caches up to `cache_bytes`."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        selection: ColumnSelection = ColumnSelection(),
        cache_bytes: int = 256 << 20,
        retries: Retries = DEFAULT_RETRIES,
    ) -> None:
        self.selection = selection
        self.group_rows = manifest.group_rows
        self.first_rows = np.concatenate(([0], np.cumsum(self.group_rows))).astype(np.int64)
        self.group_events = _events_of_groups(manifest)
        self.num_events = sum(self.group_events)
        self._groups = _groups_of(manifest)
        self._ids = None
        if not selection.numbers and not manifest.ids_are_numbers:
            self._ids = ids_of_numbers(folder, manifest, selection.unknown)
        self._event_columns, self._user_columns, shown = _feature_columns(manifest, selection)
        self._decode = decoder_of(manifest.features, self._ids)
        self._labels = tuple(manifest.labels.get("names", ()))
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[int, PackedHistories] = OrderedDict()
        self._lists = ("item", *(("time",) if selection.times else ()), *self._event_columns)
        self._impression_columns = shown
        self._impressions = _impression_columns(self._labels, shown) if selection.impressions else ()
        self._once = (*(("user",) if selection.users else ()), *self._user_columns)
        self._files = PartFiles(folder, manifest, (*self._lists, *self._impressions, *self._once, *CUTS), retries)

    def check_files(self, share: int = 0, num_shares: int = 1) -> None:
        """Open the files of one share, and compare them with the manifest.

        Args:
            share: Number of the share, if several processes divide the files.
            num_shares: Number of shares.

        Raises:
            UserError: A file, and if applicable its column, differs from the manifest. The message names it.
        """
        self._files.check(share, num_shares)

    def read(self, groups: Iterable[int]) -> dict[int, PackedHistories]:
        """Return the groups, from the cache or the files. Raises UserError naming a file that cannot be read."""
        numbers = [int(g) for g in groups]
        self._cached |= self._load_all([group for group in numbers if group not in self._cached])
        for group in numbers:
            self._cached.move_to_end(group)
        requested = {group: self._cached[group] for group in numbers}
        total = sum(packed.num_bytes for packed in self._cached.values())
        while total > self._cache_bytes and len(self._cached) > len(requested):
            # Requested groups were moved to the end, so the oldest is never one of them here.
            total -= self._cached.popitem(last=False)[1].num_bytes
        return requested

    def cuts(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (train_end, validation_end) of a group's rows, (rows,) int64 each, without reading any event."""
        place = self._groups[group]
        return self._read_cuts(place.cuts or place.pieces[0])

    def _read_cuts(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        table = self._files.read(piece, [*CUTS])
        return tuple(table.column(name).to_numpy().astype(np.int64) for name in CUTS)  # type: ignore[return-value]

    def train_ends(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return train_end of the rows of row groups start .. stop - 1, (rows,) int32, without reading any event.

        By default it returns those of all rows of the dataset.
        """
        groups = range(start, len(self._groups) if stop is None else stop)
        base = self.first_rows[start]
        ends = np.empty(self.first_rows[groups.stop] - base, dtype=np.int32)
        pieces: dict[str, list[tuple[int, int]]] = {}
        for number in groups:
            place = self._groups[number].cuts or self._groups[number].pieces[0]
            pieces.setdefault(place.path, []).append((place.number, number))
        for path, own in pieces.items():
            table = self._files.read_several(path, [number for number, _ in own], ["train_end"])
            values = np.split(
                table.column("train_end").to_numpy(), np.cumsum([self.group_rows[g] for _, g in own])[:-1]
            )
            for (_, group), of_group in zip(own, values, strict=True):  # row groups, never rows
                first, last = self.first_rows[group : group + 2] - base
                ends[first:last] = of_group
        return ends

    def users(self) -> pa.Array:
        """Return the user of every row of the dataset, (num_rows,) values as in the logs, without reading any event."""
        return pa.concat_arrays([_array(self._files.read(g.pieces[0], ["user"]).column("user")) for g in self._groups])

    def shown(self, group: int, *names: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Return columns of a group's impressions, such as "time", without reading other columns.

        Args:
            group: the row group.
            names: the columns.

        Returns:
            Columns by name, (m,) each; starts (rows,); ends (rows,). Row r has the entries from starts[r] to ends[r], which
        ascend in time. Rows follow one another.
        """
        place = self._groups[group]
        num_rows = self.group_rows[group]
        columns = tuple(f"impression.{name}" for name in names)
        tables = [self._files.read(place.pieces[0], [*columns])]
        tables += [self._files.read(piece, [*columns, "row"]) for piece in place.pieces[1:]]
        rows = [np.arange(num_rows)]
        rows += [table.column("row").to_numpy().astype(np.int64) - place.first_row for table in tables[1:]]
        values, starts, ends = _merged(tables, rows, columns, num_rows)
        return {n: values[c] for n, c in zip(names, columns, strict=True)}, starts, ends  # type: ignore[misc]

    def _load_all(self, numbers: list[int]) -> dict[int, PackedHistories]:
        """Read row groups of one file together, and pack each of them."""
        by_path: dict[str, list[int]] = {}
        for number in numbers:
            by_path.setdefault(self._groups[number].pieces[0].path, []).append(number)
        loaded = {}
        for path, own in by_path.items():
            own_cuts = () if self._groups[own[0]].cuts is not None else CUTS
            columns = [*self._lists, *self._impressions, *self._once, *own_cuts]
            places = [self._groups[number].pieces[0].number for number in own]
            for number, table in zip(own, self._files.read_together(path, places, columns), strict=True):
                loaded[number] = self._packed(self._groups[number], self.group_rows[number], table)
        return loaded

    def _packed(self, group: _Group, num_rows: int, first: pa.Table) -> PackedHistories:
        """Pack a row group from its oldest piece and those that continue it."""
        lists = [*self._lists, *self._impressions, "row"]
        tables = [first, *(self._files.read(piece, lists) for piece in group.pieces[1:])]
        continued = [t.column("row").to_numpy().astype(np.int64) - group.first_row for t in tables[1:]]
        rows = [np.arange(num_rows), *continued]
        values, starts, ends = _merged(tables, rows, self._lists, num_rows)
        if group.cuts is not None:
            train_end, validation_end = self._read_cuts(group.cuts)
        else:
            train_end, validation_end = (first.column(name).to_numpy().astype(np.int64) for name in CUTS)
        user_columns = {name: column_of(first.column(name)) for name in self._user_columns}
        return PackedHistories(
            items=self._item_ids(values["item"]),
            starts=starts,
            ends=ends,
            train_end=train_end,
            validation_end=validation_end,
            users=_array(first.column("user")) if self.selection.users else None,
            times=values.get("time"),  # type: ignore[arg-type]
            features=self._decoded(values, self._event_columns, "event."),
            user_features=self._decoded(user_columns, self._user_columns, "user."),
            impressions=self._load_impressions(tables, rows, num_rows) if self._impressions else None,
        )

    def _load_impressions(self, tables: list[pa.Table], rows: list[np.ndarray], num_rows: int) -> PackedImpressions:
        values, starts, ends = _merged(tables, rows, self._impressions, num_rows)
        features = {f"event.{name.removeprefix('impression.')}": column for name, column in values.items()}
        columns = tuple(f"event.{name.removeprefix('impression.')}" for name in self._impression_columns)
        return PackedImpressions(
            items=self._item_ids(values["impression.item"]),
            times=values["impression.time"],  # type: ignore[arg-type]
            history_end=values["impression.history_end"].astype(np.int64),  # type: ignore[union-attr]
            labels={name: values[f"label.{name}"] for name in self._labels},  # type: ignore[misc]
            features=self._decoded(features, columns, "event."),
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


def _events_of_groups(manifest: Manifest) -> tuple[int, ...]:
    """Return the events of every row group of the dataset, over all generations."""
    events = [0] * len(manifest.group_rows)
    for part in manifest.parts:
        for piece in part.row_groups:
            events[piece.group] += piece.num_events
    return tuple(events)


def _groups_of(manifest: Manifest) -> list[_Group]:
    """Return the pieces of every row group of the dataset, the oldest first."""
    pieces: dict[int, list[Piece]] = {}
    partition: dict[int, int] = {}
    for part in manifest.parts:
        for number, piece in enumerate(part.row_groups):
            pieces.setdefault(piece.group, []).append(Piece(part.path, number))
            partition[piece.group] = part.partition
    cuts = {file.partition: file.path for file in manifest.cuts}
    rows = manifest.group_rows
    groups = []
    first_row: dict[int, int] = {}
    place: dict[int, int] = {}  # of a group within its partition
    for group in range(len(rows)):
        home = partition[group]
        number = place.setdefault(home, 0)
        path = cuts.get(home)
        cut = Piece(path, number) if path is not None else None
        groups.append(_Group(tuple(pieces[group]), cut, first_row.setdefault(home, 0)))
        first_row[home] += rows[group]
        place[home] += 1
    return groups


def _feature_columns(
    manifest: Manifest, selection: ColumnSelection
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the feature columns of events, of users and of impressions; impressions have the features of events."""
    declared = [f.column for owner in ("event", "user") for f in manifest.features if f.owner == owner]
    columns = declared + [f"impression.{f.name}" for f in manifest.features if f.owner == "event"]
    if selection.features is not True:
        columns = [column for column in columns if selection.features and column in selection.features]
    events, users, impressions = (
        tuple(column for column in columns if column.startswith(f"{owner}."))
        for owner in ("event", "user", "impression")
    )
    return events, users, impressions


def _impression_columns(labels: tuple[str, ...], features: tuple[str, ...]) -> tuple[str, ...]:
    return ("impression.item", "impression.time", "impression.history_end", *(f"label.{n}" for n in labels), *features)


def _merged(
    tables: list[pa.Table], rows: list[np.ndarray], columns: tuple[str, ...], num_rows: int
) -> tuple[dict[str, Column], np.ndarray, np.ndarray]:
    """Merge the lists of all generations, one after the other for each row: (values by column, starts, ends (num_rows,)).

    Args:
        tables: a table per generation.
        rows: for each table, the row that each of its entries continues.
        columns: the columns.
        num_rows: number of rows.
    """
    offsets = [_array(table.column(columns[0])).offsets.to_numpy().astype(np.int64) for table in tables]
    if len(tables) == 1:
        bounds = offsets[0] - offsets[0][0]
        return {name: _list_values(tables[0].column(name)) for name in columns}, bounds[:-1], bounds[1:]
    bases = np.concatenate(([0], np.cumsum([o[-1] - o[0] for o in offsets])))
    starts = np.concatenate([o[:-1] - o[0] + base for o, base in zip(offsets, bases, strict=False)])
    ends = np.concatenate([o[1:] - o[0] + base for o, base in zip(offsets, bases, strict=False)])
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    places, packed = stretches(starts[order], ends[order])
    bounds = packed[np.searchsorted(row[order], np.arange(num_rows + 1))]
    pieces = {name: [_list_values(table.column(name)) for table in tables] for name in columns}
    return {name: take(concatenate(own), places) for name, own in pieces.items()}, bounds[:-1], bounds[1:]


def _array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, without a copy if it has one chunk, which is the case for a row group."""
    if column.num_chunks == 1:
        return column.chunk(0)
    combined = column.combine_chunks()  # an array or chunks, depending on their number
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _list_values(column: pa.ChunkedArray) -> Column:
    """Return the entries of all lists of a column, one after another, without their offsets."""
    lists = _array(column)
    if lists.null_count:
        return _column_of(lists.flatten())
    first, last = lists.offsets[0].as_py(), lists.offsets[-1].as_py()
    return _column_of(lists.values.slice(first, last - first))


def column_of(column: pa.ChunkedArray) -> Column:
    """Return a column that has one entry per row as arrays."""
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
