"""What training counts: examples. An example is a row of the dataset, or one window of a row's history (or its impressions of one
day: day_examples.py).

The invariant: the id of an example depends on its row and its window alone. A window is counted from the most recent one, which
is number 0 and as long as windows may be, so that only the oldest of a row is shorter; without windows every example is
window 0, and its id the number of its row.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from models.features.unique import distinct_ids
from trainer.data.stream.order import Places, Position
from trainer.data.stream.row_groups import RowGroupReader

WINDOW_STEP = 1 << 40  # the id of window w of row r is w * WINDOW_STEP + r


@dataclass(frozen=True)
class Chosen:
    """Examples by their row: position in the epoch, row group, row within the group, window (all (n,) int64).

    length: (n,) int64 input events, where the cuts were read.
    """

    position: np.ndarray
    group: np.ndarray
    row: np.ndarray
    window: np.ndarray
    length: np.ndarray | None

    def taken(self, index: np.ndarray | slice) -> "Chosen":
        return Chosen(
            self.position[index],
            self.group[index],
            self.row[index],
            self.window[index],
            None if self.length is None else self.length[index],
        )


@dataclass(frozen=True)
class Examples:
    """All examples of a dataset. group_sizes: how many each row group has; first_rows: (groups + 1,) rows before each group.

    train_end: (num_rows,) int32, one more than there are input events, read once at the start; none where each row is one example
    and nobody asks for its length.
    typical_events: about how many input events an example has, to choose sizes of buffers by.
    """

    group_sizes: tuple[int, ...]
    first_rows: np.ndarray
    max_history: int
    typical_events: int
    train_end: np.ndarray | None = None
    windows: bool = False

    @cached_property
    def num_examples(self) -> int:
        return sum(self.group_sizes)

    def epochs(self, num_epochs: int) -> range:
        """The numbers of all epochs, of which so many are wanted."""
        return range(num_epochs)

    def of(self, epoch: int) -> "Examples":
        """The examples of an epoch: the same in all."""
        return self

    def number_of(self, position: Position) -> int:
        """A position as one number: examples trained since the start of the run."""
        return position.as_number(self.num_examples)

    def choose(self, places: Places) -> Chosen:
        """The rows and windows at these places of their row groups."""
        row, window = places.place, np.zeros_like(places.place)
        if self.windows:
            row, window = self._windows_at(places)
        length = None
        if self.train_end is not None:
            num_inputs = self.train_end[self.first_rows[places.group] + row].astype(np.int64) - 1
            length = np.clip(num_inputs - window * self.max_history, 0, self.max_history)
        return Chosen(places.position, places.group, row, window, length)

    def ids(self, chosen: Chosen) -> np.ndarray:
        """(n,) int64: the number of the row in the dataset, and WINDOW_STEP for each window after the most recent."""
        ids: np.ndarray = self.first_rows[chosen.group] + chosen.row + chosen.window * WINDOW_STEP
        return ids

    def _windows_at(self, places: Places) -> tuple[np.ndarray, np.ndarray]:
        groups, (which,) = distinct_ids(places.group)
        nothing = np.zeros(0, dtype=np.int64)
        tables = [(nothing, nothing), *(self._windows_of(group) for group in groups.tolist())]
        bases = np.cumsum([rows.size for rows, _ in tables])
        at = bases[which] + places.place
        return np.concatenate([rows for rows, _ in tables])[at], np.concatenate([w for _, w in tables])[at]

    def _windows_of(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """(row, window) of every example of a group: row by row, the most recent window first."""
        assert self.train_end is not None
        counts = num_windows(self.train_end[self.first_rows[group] : self.first_rows[group + 1]], self.max_history)
        rows = np.repeat(np.arange(counts.size), counts)
        return rows, np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)


def num_windows(train_end: np.ndarray, max_history: int) -> np.ndarray:
    """Windows of each row, at least one: (n,) int64."""
    return np.maximum(1, -(-(train_end.astype(np.int64) - 1) // max_history))


def examples_of(
    reader: RowGroupReader,
    max_history: int,
    long_histories: Literal["recent", "windows"],
    with_lengths: bool,
    last_is_input: bool = False,
) -> Examples:
    """Reads the cuts of all rows where windows or lengths need them: 4 bytes per row stay in memory.

    last_is_input: the last training event of a history is no mere target, so that there is one input event more.
    """
    typical = max(1, min(max_history, reader.num_events // max(1, sum(reader.group_rows))))
    windows = long_histories == "windows"
    if not windows and not with_lengths:
        return Examples(reader.group_rows, reader.first_rows, max_history, typical)
    train_end = reader.train_ends() + np.int32(last_is_input)
    sizes = reader.group_rows
    if windows:
        counts = num_windows(train_end, max_history)
        sizes = tuple(np.add.reduceat(counts, reader.first_rows[:-1]).tolist())
    return Examples(sizes, reader.first_rows, max_history, typical, train_end, windows)
