"""Packed columns: values stored one after another, which are taken, joined and cut without a loop over entries."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lists:
    """Lists of values, one per event or user."""

    # (n,) values of all lists, one after another.
    values: np.ndarray
    # (entries + 1,) int64: entry i owns values[offsets[i]:offsets[i + 1]].
    offsets: np.ndarray

    def take(self, index: np.ndarray) -> "Lists":
        """Return the entries at these positions."""
        return Lists(*gather(self.values, self.offsets[index], self.offsets[index + 1]))

    def sliced(self, start: int, stop: int) -> "Lists":
        """Return entries start .. stop - 1: a view of the values."""
        first, last = self.offsets[start], self.offsets[stop]
        return Lists(self.values[first:last], self.offsets[start : stop + 1] - first)


Column = np.ndarray | Lists


def take(column: Column, index: np.ndarray) -> Column:
    """Return the entries of a column at these positions."""
    return column.take(index) if isinstance(column, Lists) else column.take(index, axis=0)


def take_all(columns: Mapping[str, Column], index: np.ndarray) -> dict[str, Column]:
    """Return the entries of all columns at these positions."""
    return {name: take(column, index) for name, column in columns.items()}


def sliced(column: Column, start: int, stop: int) -> Column:
    """Return entries start .. stop - 1: a view."""
    return column.sliced(start, stop) if isinstance(column, Lists) else column[start:stop]


def slice_all(columns: Mapping[str, Column], start: int, stop: int) -> dict[str, Column]:
    """Return entries start .. stop - 1 of all columns: views."""
    return {name: sliced(column, start, stop) for name, column in columns.items()}


def concatenate(columns: list[Column]) -> Column:
    """Concatenate columns of one kind."""
    if len(columns) == 1:
        return columns[0]
    if not isinstance(columns[0], Lists):
        return np.concatenate(columns)  # type: ignore[arg-type]
    lists: list[Lists] = columns  # type: ignore[assignment]
    bases = np.concatenate(([0], np.cumsum([piece.values.shape[0] for piece in lists])))
    offsets = [piece.offsets[:-1] + base for piece, base in zip(lists, bases, strict=False)]
    return Lists(np.concatenate([piece.values for piece in lists]), np.concatenate([*offsets, bases[-1:]]))


def concatenate_all(pieces: list[Mapping[str, Column]]) -> dict[str, Column]:
    """Concatenate mappings of columns, name by name."""
    return {name: concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def stretches(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions starts[i] .. ends[i] - 1, one stretch after another: (places (N,) int64, offsets (n + 1,) int64)."""
    lengths = ends - starts
    offsets = np.zeros(lengths.size + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    places = np.arange(offsets[-1])
    places += np.repeat(starts - offsets[:-1], lengths)
    return places, offsets


def gather(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pack the stretches values[starts[i]:ends[i]] one after another: (packed values, offsets (n + 1,) int64)."""
    places, offsets = stretches(starts, ends)
    return values.take(places, axis=0), offsets


def zero_like(column: Column) -> Column:
    """Return a single entry in a column like this one: the number 0, or an empty list."""
    if isinstance(column, Lists):
        return Lists(column.values[:0], np.zeros(2, dtype=np.int64))
    return np.zeros((1, *column.shape[1:]), dtype=column.dtype)
