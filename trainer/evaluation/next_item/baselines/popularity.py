"""Baselines that need counts of events only: popularity, recent popularity, and repeat-last."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from models.batches.history_batch import FIRST_ITEM
from sharding.world import World
from trainer.data.stream.held_out import HeldOutBatch
from trainer.evaluation.next_item.baselines.listed import NO_ITEMS, BaselineRanks, Listed, rank_listed
from trainer.evaluation.next_item.baselines.order import ItemOrder
from trainer.evaluation.next_item.baselines.training_part import TrainingEvents

RECENT_DAYS = (7, 30)  # windows of recent popularity
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class ListBaseline:
    """Baseline that lists a few items per user in front of a common order."""

    name: str
    """In columns and tables, for example "popularity_7d"."""
    description: str
    """The recommendations in one sentence."""
    order: ItemOrder
    """The order of all other items."""
    listed: Callable[[HeldOutBatch], Listed] = lambda held: NO_ITEMS
    """The items that come first, by user."""

    def rank(self, held: HeldOutBatch, masked: np.ndarray, top: int) -> BaselineRanks:
        """Rank the targets of a batch, and return the `top` best items of each user."""
        return rank_listed(self.order, self.listed(held), held, masked, top)


class WindowCounter:
    """Training events by item from a moment on."""

    def __init__(self, days: int, since: int, num_items: int) -> None:
        """Start at 0.

        Args:
            days: the length of the window.
            since: the earliest time of a counted event, in the unit of the logs.
            num_items: V.
        """
        self.days = days
        self._since = since
        self._counts = np.zeros(num_items + FIRST_ITEM, dtype=np.int64)

    def add(self, events: TrainingEvents) -> None:
        """Count the training events of some rows."""
        self._counts += np.bincount(events.items[events.times >= self._since], minlength=self._counts.size)

    def total(self, world: World) -> np.ndarray:
        """Return the events of each item over all ranks, (V,) int64 by id from 1 on. Collective."""
        counts: np.ndarray = world.sum(torch.from_numpy(self._counts).to(world.device)).cpu().numpy()
        return counts[FIRST_ITEM:]


def last_items(held: HeldOutBatch) -> Listed:
    """Return the distinct items of each history, the most recent one first."""
    users = np.repeat(np.arange(held.row_ids.size), np.diff(held.seen_offsets))
    known = np.flatnonzero(held.seen > 0)
    size = int(held.seen.max(initial=0)) + 1
    # Of an item that repeats, the last event counts: unique keeps the first one of the reversed order.
    newest_first = known[::-1]
    _, first = np.unique(users[newest_first] * size + held.seen[newest_first], return_index=True)
    places = newest_first[first]
    return Listed(users[places], held.seen[places], places)
