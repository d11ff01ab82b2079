"""Common order of all items: every list of a baseline ends with it. Pure numpy."""

from dataclasses import dataclass

import numpy as np

from models.batches.history_batch import FIRST_ITEM


@dataclass(frozen=True)
class ItemOrder:
    """Total order of the V items of the catalogue."""

    items: np.ndarray
    """(V,) int64 ids, the first item first."""
    places: np.ndarray
    """(V + 1,) int64 places from 0 by id. Id 0 is no item; its place is V."""

    @classmethod
    def by_counts(cls, *counts: np.ndarray) -> "ItemOrder":
        """Order items by descending counts. Equal first counts are ordered by the next ones, and by id in the end.

        counts: (V,) each, by id from 1 on.
        """
        items = np.lexsort([-column for column in reversed(counts)]) + FIRST_ITEM
        places = np.full(items.size + FIRST_ITEM, items.size, dtype=np.int64)
        places[items] = np.arange(items.size)
        return cls(items.astype(np.int64), places)

    @property
    def num_items(self) -> int:
        """V."""
        return int(self.items.size)
