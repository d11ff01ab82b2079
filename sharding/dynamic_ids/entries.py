"""The ids that one rank holds, with the state of each, in arrays of entries that a hash index finds.

An entry is an id with a row, or a candidate. Its number is local to the rank and has no meaning outside of it; numbers of removed
entries are used again.
"""

import numpy as np
from numpy.typing import NDArray

from sharding.dynamic_ids.hash_index import HashIndex

Int64 = NDArray[np.int64]

NO_ROW = -1


class Entries:
    """Arrays with one value per entry. A count of 0 marks an entry as free.

    Attributes:
        ids: (n,) int64.
        counts: (n,) int64 uses; of an id with a row, at its last use.
        last_used: (n,) int64 steps.
        rows: (n + 1,) int64 rows in the table, NO_ROW for candidates and free entries, and at the end for absent ids (entry -1).
        generations: (n,) int32, how often the row passed from one id to another.
        index: finds the entry of an id.
    """

    def __init__(self, most: int, num_ranks: int) -> None:
        """Allocate this rank's share of `most` ids. If more than that belong to it, the arrays grow."""
        share = -(-most // num_ranks)
        # The number of ids of a rank varies by the square root of its mean. Four standard deviations are hardly ever exceeded.
        capacity = most if num_ranks == 1 else share + 4 * int(share**0.5) + 16
        self.ids = np.zeros(capacity, np.int64)
        self.counts = np.zeros(capacity, np.int64)
        self.last_used = np.zeros(capacity, np.int64)
        self.rows = np.full(capacity + 1, NO_ROW, np.int64)
        self.generations = np.zeros(capacity, np.int32)
        # A stack from the end: the first id gets the first entry.
        self._free = np.arange(capacity - 1, -1, -1, dtype=np.int32)
        self._num_free = capacity
        self.index = HashIndex(share)

    @property
    def num_bytes(self) -> int:
        """Return the memory of the arrays and the index."""
        arrays = (self.ids, self.counts, self.last_used, self.rows, self.generations, self._free)
        return sum(array.nbytes for array in arrays) + self.index.num_bytes

    def add(self, ids: Int64, counts: Int64 | int, last_used: Int64 | int) -> Int64:
        """Add absent ids as candidates, and return their entries."""
        if ids.size > self._num_free:
            self._grow(ids.size - self._num_free)
        self._num_free -= ids.size
        entries = self._free[self._num_free : self._num_free + ids.size][::-1].astype(np.int64)
        self.ids[entries] = ids
        self.counts[entries] = counts
        self.last_used[entries] = last_used
        self.index.insert(ids, entries)
        return entries

    def remove(self, entries: Int64) -> None:
        """Free entries. Their last use stays, so that queues can tell that they have left."""
        self.index.remove(self.ids[entries])
        self.counts[entries] = 0
        self.rows[entries] = NO_ROW
        self._free[self._num_free : self._num_free + entries.size] = entries
        self._num_free += entries.size

    def used(self, with_row: bool, before: int | None = None) -> Int64:
        """Return the entries with a row, or those of candidates, last used before a step if it is given, in ascending order."""
        rows = self.rows[:-1]
        chosen = rows >= 0 if with_row else (rows == NO_ROW) & (self.counts > 0)
        if before is not None:
            chosen &= self.last_used < before
        return np.flatnonzero(chosen)

    def _grow(self, missing: int) -> None:
        """Make room for `missing` more entries, and an eighth of all."""
        size = self.ids.size
        more = missing + size // 8
        for name in ("ids", "counts", "last_used", "generations"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate((array, np.zeros(more, array.dtype))))
        self.rows = np.concatenate((self.rows, np.full(more, NO_ROW, np.int64)))  # the last value was NO_ROW before
        fresh = np.arange(size + more - 1, size - 1, -1, dtype=np.int32)
        # The new entries come first on the stack; the free ones of before stay on top of them.
        free = np.concatenate((fresh, self._free[: self._num_free]))
        self._free = np.concatenate((free, np.zeros(size + more - free.size, np.int32)))
        self._num_free = free.size
