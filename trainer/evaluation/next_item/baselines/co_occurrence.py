"""Item-to-item co-occurrence: items that follow the user's most recent events in the training histories of others.

An item b gets from an item a the weighted number of times that b came within DISTANCE events after a. A distance of d events has
the weight DISTANCE + 1 - d (sequential rules: Ludewig & Jannach 2018, arXiv:1803.09587, with weights 1 / d there). The score of b
is the sum over the LAST_EVENTS most recent events of the user. Items without a score follow by popularity.

Memory is bounded: at most MAX_EVENTS training events are counted, of users at even distances, and of each user the
MOST_RECENT last ones; an item keeps its MAX_NEIGHBOURS best followers. Counts are whole numbers, so no result depends on the ranks.
"""

import numpy as np
import torch

from sharding.world import World
from trainer.data.stream.columns import stretches
from trainer.data.stream.held_out import NOTHING, HeldOutBatch
from trainer.evaluation.next_item.baselines.listed import Listed
from trainer.evaluation.next_item.baselines.order import ItemOrder
from trainer.evaluation.next_item.baselines.training_part import TrainingEvents

DISTANCE = 5
LAST_EVENTS = 3
MAX_NEIGHBOURS = 100
MOST_RECENT = 200
MAX_EVENTS = 2_000_000
_PENDING = 4_000_000  # pairs that are merged at a time

Pairs = tuple[np.ndarray, np.ndarray]


class PairCounter:
    """Weighted numbers of pairs (a, b) where b follows a, as keys a * (V + 1) + b with their counts."""

    def __init__(self, num_items: int, train_ends: np.ndarray) -> None:
        """Start at 0.

        Args:
            num_items: V.
            train_ends: (rows,) training events of each row of the dataset.
        """
        self._size = num_items + 1
        total = int(np.minimum(train_ends, MOST_RECENT).sum())
        self.stride = max(1, -(-total // MAX_EVENTS))
        self._merged: Pairs = (NOTHING, NOTHING)
        self._pending: list[Pairs] = []
        self._num_pending = 0

    def add(self, events: TrainingEvents) -> None:
        """Count the pairs of some rows."""
        events = events.every(self.stride, MOST_RECENT)
        rows = events.rows
        for distance in range(1, DISTANCE + 1):
            first, second = events.items[:-distance], events.items[distance:]
            pairs = (rows[:-distance] == rows[distance:]) & (first != second) & (first > 0) & (second > 0)
            keys, counts = np.unique(first[pairs] * self._size + second[pairs], return_counts=True)
            self._pending.append((keys, counts * (DISTANCE + 1 - distance)))
            self._num_pending += keys.size
        if self._num_pending > _PENDING:
            self._merge()

    def _merge(self) -> None:
        self._merged = _added([self._merged, *self._pending])
        self._pending = []
        self._num_pending = 0

    def followers(self, order: ItemOrder, world: World) -> "Followers":
        """Return the best followers of every item over all ranks. Collective.

        order: decides between equal counts.
        """
        self._merge()
        everywhere = [world.gather(torch.from_numpy(column).to(world.device)) for column in self._merged]
        keys, counts = _added(
            [(key.cpu().numpy(), count.cpu().numpy()) for key, count in zip(*everywhere, strict=True)]
        )
        first, second = np.divmod(keys, self._size)
        best = np.lexsort((order.places[second], -counts, first))
        first, second, counts = first[best], second[best], counts[best]
        starts = np.searchsorted(first, first)
        kept = np.arange(first.size) - starts < MAX_NEIGHBOURS
        offsets = np.searchsorted(first[kept], np.arange(self._size + 1))
        return Followers(offsets, second[kept], counts[kept])


class Followers:
    """Followers of every item: those of item a are entries offsets[a] to offsets[a + 1]."""

    def __init__(self, offsets: np.ndarray, items: np.ndarray, counts: np.ndarray) -> None:
        """Keep the followers.

        Args:
            offsets: (V + 2,).
            items: (F,) ids.
            counts: (F,) int64.
        """
        self._offsets = offsets
        self._items = items
        self._counts = counts

    def listed(self, held: HeldOutBatch) -> Listed:
        """Return the summed counts of the followers of each user's most recent events."""
        size = self._offsets.size - 1
        ends = held.seen_offsets[1:]
        recent, bounds = stretches(np.maximum(held.seen_offsets[:-1], ends - LAST_EVENTS), ends)
        users = np.repeat(np.arange(ends.size), np.diff(bounds))
        events = held.seen[recent]
        places, of_event = stretches(self._offsets[events], self._offsets[events + 1])
        user_of_pair = np.repeat(users, np.diff(of_event))
        keys, scores = _added([(user_of_pair * size + self._items[places], self._counts[places])])
        return Listed(*np.divmod(keys, size), scores)


def _added(parts: list[Pairs]) -> Pairs:
    """Return the distinct keys of all parts, ascending, with the sums of their counts."""
    keys = np.concatenate([key for key, _ in parts])
    counts = np.concatenate([count for _, count in parts])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.concatenate((np.ones(min(1, keys.size), np.bool_), keys[1:] != keys[:-1])))
    sums = np.add.reduceat(counts[order], first) if first.size else NOTHING
    return keys[first], sums
