"""Batches of chosen rows of a dataset, full ones however far apart the rows are.

Scoring a batch reads all item vectors, so a batch of few users costs nearly as much as a full one. The chosen rows of a row group
are copied out of it, and those of further groups join them until a batch is full. So no more than one row group and one batch is
held.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainer.data.stream.columns import stretches, take_all
from trainer.data.stream.held_out import NOTHING
from trainer.data.stream.packed import PackedHistories, PackedImpressions, joined
from trainer.data.stream.row_groups import RowGroupReader

RowBatches = Iterator[tuple[PackedHistories, np.ndarray, np.ndarray]]
"""Packed rows, their numbers in the dataset, and the rows of a batch among them. The same number on every rank."""


@dataclass(frozen=True)
class ChosenRows:
    """Assignment of chosen rows to ranks by their row groups, as of trainer.data.stream.held_out.Deal, and to batches."""

    reader: RowGroupReader
    """Reads row groups."""
    rows: np.ndarray
    """(n,) chosen rows of the dataset, ascending, each once."""
    batch_size: int
    """Rows of a batch over all ranks."""
    rank: int
    """Number of this rank."""
    world_size: int
    """Number of ranks."""

    def num_batches(self) -> int:
        """Return the number of batches, which is the same on every rank: that of the rank with the most."""
        counts = np.bincount(self._groups_of_rows(), minlength=len(self.reader.group_rows))
        return max(-(-int(counts[self._groups(rank)].sum()) // self._share) for rank in range(self.world_size))

    def batches(self) -> RowBatches:
        """Yield packed rows, their numbers in the dataset, and the rows of the batch among them.

        All batches of a rank but its last one are full. If it has fewer than others, batches without rows follow.
        """
        pieces: list[PackedHistories] = []
        numbers = self.rows[:0]
        num_yielded = 0
        groups = self._groups(self.rank)
        bounds = self.reader.first_rows
        for group in groups:
            own = self.rows[slice(*np.searchsorted(self.rows, bounds[group : group + 2]))]
            pieces.append(_taken(self.reader.read([group])[group], own - bounds[group]))
            numbers = np.concatenate((numbers, own))
            if numbers.size < self._share and group != groups[-1]:
                continue
            packed = joined(pieces)
            # After the last group the rest is a batch, too.
            stop = numbers.size if group == groups[-1] else numbers.size // self._share * self._share
            for start in range(0, stop, self._share):
                yield packed, numbers, np.arange(start, min(start + self._share, stop))
                num_yielded += 1
            pieces = [_taken(packed, np.arange(stop, numbers.size))]
            numbers = numbers[stop:]
        for _ in range(num_yielded, self.num_batches()):
            yield self.reader.read([0])[0], NOTHING, NOTHING

    @property
    def _share(self) -> int:
        return max(1, self.batch_size // self.world_size)

    def _groups_of_rows(self) -> np.ndarray:
        """Return the row group of each chosen row, (n,)."""
        groups: np.ndarray = np.searchsorted(self.reader.first_rows, self.rows, side="right") - 1
        return groups

    def _groups(self, rank: int) -> np.ndarray:
        """Return the row groups of a rank that have a chosen row."""
        return np.unique(self._groups_of_rows())[rank :: self.world_size]


def _taken(packed: PackedHistories, rows: np.ndarray) -> PackedHistories:
    """Return a copy of some rows of packed histories."""
    places, offsets = stretches(packed.starts[rows], packed.ends[rows])
    return PackedHistories(
        items=packed.items.take(places),
        starts=offsets[:-1],
        ends=offsets[1:],
        train_end=packed.train_end[rows],
        validation_end=packed.validation_end[rows],
        users=None if packed.users is None else packed.users.take(pa.array(rows)),
        times=None if packed.times is None else packed.times.take(places),
        features=take_all(packed.features, places),
        user_features=take_all(packed.user_features, rows),
        impressions=None if packed.impressions is None else _taken_impressions(packed.impressions, rows),
    )


def _taken_impressions(shown: PackedImpressions, rows: np.ndarray) -> PackedImpressions:
    """Return a copy of the impressions of some rows."""
    places, offsets = stretches(shown.starts[rows], shown.ends[rows])
    return PackedImpressions(
        items=shown.items.take(places),
        times=shown.times.take(places),
        history_end=shown.history_end.take(places),
        labels={name: values.take(places) for name, values in shown.labels.items()},
        features=take_all(shown.features, places),
        starts=offsets[:-1],
        ends=offsets[1:],
    )
