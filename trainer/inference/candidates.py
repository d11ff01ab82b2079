"""Candidates of recommendations: all items, or some of them, numbered from 1 on in the order of their ids.

The order of numbers is that of ids, so equal scores are ordered as in evaluation.
"""

from dataclasses import dataclass

import numpy as np

from models.batches.history_batch import FIRST_ITEM
from trainer.data.dataset.manifest import UNKNOWN_ID


@dataclass(frozen=True)
class Candidates:
    """The items that may be recommended."""

    num_items: int
    """The number of items of the catalogue. Their ids are 1 .. num_items."""
    some: np.ndarray | None = None
    """(n,) int64 ids, ascending and distinct; None: all items."""

    @classmethod
    def of(cls, num_items: int, ids: np.ndarray | None) -> "Candidates":
        """Return the items with ids (n,), in any order; 0 is no item. None: all items."""
        if ids is None:
            return cls(num_items)
        ids = np.unique(ids.astype(np.int64))
        return cls(num_items, ids[ids >= FIRST_ITEM])

    @property
    def size(self) -> int:
        """Number of candidates."""
        return self.num_items if self.some is None else int(self.some.size)

    def ids(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the ids of the candidates first .. stop - 1, counted from 0."""
        if self.some is None:
            return np.arange(first, self.num_items if stop is None else stop) + FIRST_ITEM
        return self.some[first:stop]

    def numbers_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each item, (n,) int64 from 1; 0 for an item that is no candidate."""
        if self.some is None or not self.some.size:
            return ids if self.some is None else np.zeros_like(ids)
        place = np.minimum(np.searchsorted(self.some, ids), self.some.size - 1)
        return np.where(self.some[place] == ids, place + FIRST_ITEM, UNKNOWN_ID)

    def ids_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the id of each number; 0 for number 0."""
        if self.some is None:
            return numbers
        return np.where(numbers > 0, np.append(self.some, UNKNOWN_ID)[numbers - FIRST_ITEM], UNKNOWN_ID)

    def most_popular(self, train_events: np.ndarray, k: int) -> np.ndarray:
        """Return the ids of the `k` candidates with the most training events, equal ones by id.

        train_events: (num_items,) of the items by id, from 1 on.
        """
        ids = self.ids()
        return ids[np.argsort(-train_events[ids - FIRST_ITEM], kind="stable")[:k]]
