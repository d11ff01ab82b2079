"""One pass over the training part of a dataset, shared by everything that baselines count."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sharding.world import World
from trainer.data.stream.columns import stretches
from trainer.data.stream.row_groups import RowGroupReader


@dataclass(frozen=True)
class TrainingEvents:
    """Training events of some rows of the dataset, one row after another."""

    row_ids: np.ndarray
    """(R,) int64 rows in the dataset."""
    items: np.ndarray
    """(N,) int64 ids in time order; 0 is unknown."""
    times: np.ndarray
    """(N,) int64."""
    offsets: np.ndarray
    """(R + 1,) int64 bounds of the rows."""

    def every(self, stride: int, most_recent: int | None = None) -> "TrainingEvents":
        """Return the events of every `stride`-th row of the dataset, and of each at most the `most_recent` last ones."""
        rows = np.flatnonzero(self.row_ids % stride == 0)
        ends = self.offsets[rows + 1]
        starts = self.offsets[rows]
        if most_recent is not None:
            starts = np.maximum(starts, ends - most_recent)
        places, offsets = stretches(starts, ends)
        return TrainingEvents(self.row_ids[rows], self.items[places], self.times[places], offsets)

    @property
    def rows(self) -> np.ndarray:
        """(N,) number of each event's row, from 0."""
        return np.repeat(np.arange(self.row_ids.size), np.diff(self.offsets))


class Counter(Protocol):
    """Counts of training events. Sums are whole numbers, so they do not depend on the order of rows."""

    def add(self, events: TrainingEvents) -> None:
        """Count the training events of some rows."""


def count_training(reader: RowGroupReader, counters: Iterable[Counter], world: World) -> None:
    """Show the training events of this rank's row groups to all counters. Raises UserError naming a file that cannot be read.

    Args:
        reader: reads items and times.
        counters: the counters.
        world: the ranks.
    """
    active = list(counters)
    for group in range(world.rank, len(reader.group_rows), world.world_size) if active else ():
        packed = reader.read([group])[group]
        assert packed.times is not None
        places, offsets = stretches(packed.starts, packed.starts + packed.train_end)
        row_ids = reader.first_rows[group] + np.arange(packed.train_end.size)
        events = TrainingEvents(row_ids, packed.items[places].astype(np.int64), packed.times[places], offsets)
        for counter in active:
            counter.add(events)
