"""Examples of training. An example is a row of the dataset, or one window of a row's history.

With daily training it is a row's impressions of one day (day_examples.py). The invariant: the id of an example depends
on its row and its window alone. Windows are counted from the most recent one, number 0. It has the full length of a
window, so only the oldest window of a row is shorter. Without windows every example is window 0, and its id is the
number of its row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from models.features.unique import unique_ids
from trainer.data.stream.order import Places, Position
from trainer.data.stream.row_groups import RowGroupReader

WINDOW_STEP = 1 << 40  # the id of window w of row r is w * WINDOW_STEP + r


@dataclass(frozen=True)
class Chosen:
    """Examples by their rows."""

    # (n,) int64 position in the epoch.
    position: np.ndarray
    # (n,) int64 row group.
    group: np.ndarray
    # (n,) int64 row within the group.
    row: np.ndarray
    # (n,) int64 window of the history, or day.
    window: np.ndarray
    # (n,) int64 input events, if the cuts were read.
    length: np.ndarray | None

    def taken(self, index: np.ndarray | slice) -> "Chosen":
        """Return the examples at these indices."""
        return Chosen(
            self.position[index],
            self.group[index],
            self.row[index],
            self.window[index],
            None if self.length is None else self.length[index],
        )


@dataclass(frozen=True)
class Examples:
    """All examples of a dataset."""

    # Number of examples of each row group.
    group_sizes: tuple[int, ...]
    # (groups + 1,) number of rows before each group.
    first_rows: np.ndarray
    # Most input events of an example.
    max_history: int
    # Approximate number of input events of an example, for the sizes of buffers.
    typical_events: int
    # (num_rows,) int32, one more than the number of input events, read once at the start. None if each row is one
    # example and no lengths are needed.
    train_end: np.ndarray | None = None
    # Whether long histories are cut into windows.
    windows: bool = False
    # Reads `train_end` of the rows of a group, if it is not kept of all rows.
    read_ends: Callable[[int], np.ndarray] | None = None

    @cached_property
    def num_examples(self) -> int:
        """Number of all examples."""
        return sum(self.group_sizes)

    def epochs(self, num_epochs: int) -> range:
        """Return the numbers of all epochs."""
        return range(num_epochs)

    def of(self, epoch: int) -> "Examples":
        """Return the examples of an epoch, which are the same in all."""
        return self

    def number_of(self, position: Position) -> int:
        """Return a position as one number: examples trained since the start of the run."""
        return position.as_number(self.num_examples)

    def choose(self, places: Places) -> Chosen:
        """Return the rows and windows at these places of their row groups."""
        row = places.place
        window = np.zeros_like(places.place)
        if self.windows:
            row, window = self._windows_at(places)
        length = None
        if self.train_end is not None:
            num_inputs = self.train_end[self.first_rows[places.group] + row].astype(np.int64) - 1
            length = np.clip(num_inputs - window * self.max_history, 0, self.max_history)
        return Chosen(places.position, places.group, row, window, length)

    def ids(self, chosen: Chosen) -> np.ndarray:
        """Return the id of each example, (n,) int64: the number of the row in the dataset, plus WINDOW_STEP times the window."""
        ids: np.ndarray = self.first_rows[chosen.group] + chosen.row + chosen.window * WINDOW_STEP
        return ids

    def _windows_at(self, places: Places) -> tuple[np.ndarray, np.ndarray]:
        groups, (which,) = unique_ids(places.group)
        nothing = np.zeros(0, dtype=np.int64)
        tables = [(nothing, nothing), *(self._windows_of(group) for group in groups.tolist())]
        bases = np.cumsum([rows.size for rows, _ in tables])
        at = bases[which] + places.place
        return np.concatenate([rows for rows, _ in tables])[at], np.concatenate([w for _, w in tables])[at]

    def _windows_of(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (row, window) of every example of a group: row by row, the most recent window first."""
        if self.read_ends is not None:
            return windows_of(self.read_ends(group), self.max_history)
        assert self.train_end is not None
        return windows_of(self.train_end[self.first_rows[group] : self.first_rows[group + 1]], self.max_history)


def num_windows(train_end: np.ndarray, max_history: int) -> np.ndarray:
    """Return the number of windows of each row, at least one: (n,) int64."""
    return np.maximum(1, -(-(train_end.astype(np.int64) - 1) // max_history))


def windows_of(train_end: np.ndarray, max_history: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, window) of every window of some rows, (n,) int64 each: row by row, the most recent window first."""
    counts = num_windows(train_end, max_history)
    rows = np.repeat(np.arange(counts.size), counts)
    return rows, np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)


def examples_of(
    reader: RowGroupReader,
    max_history: int,
    long_histories: Literal["recent", "windows"],
    with_lengths: bool,
    last_is_input: bool = False,
) -> Examples:
    """Return the examples of a dataset. For windows or lengths it reads the cuts of all rows: 4 bytes per row stay in memory.

    Args:
        reader: reads row groups.
        max_history: most input events of an example.
        long_histories: whether long histories are truncated or cut into windows.
        with_lengths: whether the lengths of examples are needed.
        last_is_input: whether the last training event of a history is an input too, which adds one input event.
    """
    typical = typical_events(reader, max_history)
    windows = long_histories == "windows"
    if not windows and not with_lengths:
        return Examples(reader.group_rows, reader.first_rows, max_history, typical)
    train_end = reader.train_ends() + np.int32(last_is_input)
    sizes = reader.group_rows
    if windows:
        counts = num_windows(train_end, max_history)
        sizes = tuple(np.add.reduceat(counts, reader.first_rows[:-1]).tolist())
    return Examples(sizes, reader.first_rows, max_history, typical, train_end, windows)


def typical_events(reader: RowGroupReader, max_history: int) -> int:
    """Return the approximate number of input events of an example, for the sizes of buffers."""
    return max(1, min(max_history, reader.num_events // max(1, sum(reader.group_rows))))
