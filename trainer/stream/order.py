"""The global order of training histories, a pure function of (seed, epoch).

Row groups are permuted by (seed, epoch) and dealt to V virtual streams; rows are permuted within their group; the
global order takes one row from each stream in turn, passing over streams that have ended. V is fixed per dataset, so
the order knows nothing of ranks: at world size W, rank r serves the streams v with v mod W = r, and the position in
the epoch is one global number. Any position can be entered directly: resuming and resizing cost nothing and lose or
repeat no row.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_STREAMS = 64


@dataclass(frozen=True)
class Rows:
    """Where each requested row lies: position in the epoch, row group, row within the group (all (n,) int64)."""

    position: np.ndarray
    group: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch. `group_rows`: rows of every row group of the dataset, in the manifest's order."""

    group_rows: tuple[int, ...]
    seed: int
    epoch: int

    @property
    def num_rows(self) -> int:
        return sum(self.group_rows)

    @property
    def num_streams(self) -> int:
        return min(MAX_STREAMS, len(self.group_rows))

    @cached_property
    def _dealt(self) -> list[np.ndarray]:
        """Row groups of each stream, in the order in which the stream reads them."""
        permuted = np.random.default_rng([self.seed, self.epoch, 0]).permutation(len(self.group_rows))
        return [permuted[stream :: self.num_streams] for stream in range(self.num_streams)]

    @cached_property
    def _layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All streams one after another: (groups, first place of each group, first place of each stream)."""
        groups = np.concatenate(self._dealt)
        rows = np.asarray(self.group_rows, dtype=np.int64)
        group_start = np.concatenate(([0], np.cumsum(rows[groups])))
        lengths = np.asarray([rows[dealt].sum() for dealt in self._dealt], dtype=np.int64)
        return groups, group_start, np.concatenate(([0], np.cumsum(lengths)))

    @cached_property
    def _segments(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Stretches of the epoch in which the same streams are alive: (first position, first round, streams alive)."""
        lengths = np.diff(self._layout[2])
        ends = np.unique(lengths[lengths > 0])
        first_round = np.concatenate(([0], ends[:-1]))
        alive = [np.flatnonzero(lengths > start) for start in first_round]
        sizes = [streams.size * (end - start) for streams, start, end in zip(alive, first_round, ends, strict=True)]
        return np.concatenate(([0], np.cumsum(sizes)))[:-1].astype(np.int64), first_round, alive

    def streams(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(stream, index within the stream) of the positions start .. stop - 1."""
        first_position, first_round, alive = self._segments
        positions = np.arange(start, min(stop, self.num_rows), dtype=np.int64)
        segment = np.searchsorted(first_position, positions, side="right") - 1
        stream, index = np.empty_like(positions), np.empty_like(positions)
        for s in np.unique(segment):
            here = segment == s
            turn, slot = np.divmod(positions[here] - first_position[s], alive[s].size)
            stream[here], index[here] = alive[s][slot], first_round[s] + turn
        return stream, index

    def rows(self, start: int, stop: int, rank: int, world_size: int) -> Rows:
        """The rows that `rank` of `world_size` serves among positions start .. stop - 1, in global order."""
        stream, index = self.streams(start, stop)
        mine = np.flatnonzero(stream % world_size == rank)
        groups, group_start, stream_start = self._layout
        place = stream_start[stream[mine]] + index[mine]
        ordinal = np.searchsorted(group_start, place, side="right") - 1
        group, row = groups[ordinal], place - group_start[ordinal]
        for g in np.unique(group):  # a handful of groups at a time, never rows
            here = group == g
            row[here] = self._row_permutation(int(g))[row[here]]
        return Rows(start + mine, group, row)

    def _row_permutation(self, group: int) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch, 1, group]).permutation(self.group_rows[group])


@dataclass(frozen=True)
class Position:
    """A place in the training data: histories of this epoch already trained."""

    epoch: int
    trained: int

    def advanced(self, batch_size: int, num_rows: int) -> "Position":
        """The place after one more global batch; the last batch of an epoch may be partial."""
        trained = self.trained + batch_size
        return Position(self.epoch, trained) if trained < num_rows else Position(self.epoch + 1, 0)

    def as_number(self, num_rows: int) -> int:
        """One global number: histories trained since the start of the run."""
        return self.epoch * num_rows + self.trained


def position_of(number: int, num_rows: int) -> Position:
    """The inverse of Position.as_number."""
    return Position(*divmod(number, num_rows))


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    return -(-num_rows // batch_size)
