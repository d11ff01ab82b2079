"""A hash table from int64 keys to entry numbers, in vectorised numpy without a Python loop over keys.

It uses open addressing with triangular probing, which visits every slot of a table with a power of two as size. A whole batch
of keys takes one probe at a time; nearly all keys are done after a few probes. Any int64 can be a key, including negative and
extreme ones: the entry of a slot marks it as taken, not a reserved key.

The layout of the slots depends on history; the results of `find` do not. So an index is never saved but rebuilt.
"""

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

EMPTY = -1  # never used since the index was built: a search ends here
REMOVED = -2  # a search continues past it, and an insertion can take it
CHUNK_KEYS = 32768  # a chunk's temporaries stay in the cache of one core


class HashIndex:
    """Slots of keys and entries. Keys are distinct, and so are entries, which are >= 0."""

    def __init__(self, capacity: int) -> None:
        """Allocate room for `capacity` keys, which take at most half of the slots: 32 to 64 bytes per key.

        With more keys than that, the index grows when they take nine sixteenths of the slots.
        """
        self._num_bits = max(4, (2 * capacity - 1).bit_length())
        # Key and entry of a slot are adjacent, so that a probe touches one cache line.
        self._slots = np.full((1 << self._num_bits, 2), EMPTY, np.int64)
        self._num_filled = 0

    @property
    def num_bytes(self) -> int:
        return self._slots.nbytes

    def find(self, keys: Int64) -> tuple[Int64, Int64]:
        """Return the entry of each key, or -1 if it is absent, and its slot (undefined if absent)."""
        entries = np.empty(keys.size, np.int64)
        slots = np.empty(keys.size, np.int64)
        for start in range(0, keys.size, CHUNK_KEYS):
            part = slice(start, start + CHUNK_KEYS)
            self._find(keys[part], entries[part], slots[part])
        return entries, slots

    def _find(self, keys: Int64, entries: Int64, slots: Int64) -> None:
        slots[:] = self._home(keys)
        probed = self._slots.take(slots, axis=0)
        hit = (probed[:, 0] == keys) & (probed[:, 1] >= 0)
        entries[:] = np.where(hit, probed[:, 1], -1)
        open_keys = np.flatnonzero(~hit & (probed[:, 1] != EMPTY))
        distance = 0
        while open_keys.size:
            distance += 1
            place = (slots[open_keys] + distance) & (self._slots.shape[0] - 1)
            slots[open_keys] = place
            probed = self._slots.take(place, axis=0)
            hit = (probed[:, 0] == keys[open_keys]) & (probed[:, 1] >= 0)
            entries[open_keys[hit]] = probed[hit, 1]
            open_keys = open_keys[~hit & (probed[:, 1] != EMPTY)]

    def insert(self, keys: Int64, entries: Int64) -> None:
        """Insert absent keys. Rebuilds the index if removed keys have left too few empty slots."""
        if 8 * (self._num_filled + keys.size) > 5 * self._slots.shape[0]:
            # Removals pay for the rebuild: the keys themselves fill at most nine sixteenths of the slots.
            kept = self._slots[self._slots[:, 1] >= 0]
            if 16 * (kept.shape[0] + keys.size) > 9 * self._slots.shape[0]:
                self._num_bits = max(self._num_bits + 1, (2 * (kept.shape[0] + keys.size) - 1).bit_length())
                self._slots = np.empty((1 << self._num_bits, 2), np.int64)
            self._slots[:] = EMPTY
            self._num_filled = 0
            self._insert(kept[:, 0], kept[:, 1])
        self._insert(keys, entries)

    def _insert(self, keys: Int64, entries: Int64) -> None:
        place = self._home(keys)
        distance = 0
        while keys.size:
            held = self._slots[place, 1]
            free = np.flatnonzero(held < 0)
            # If several keys claim one slot, the last one written gets it. The others notice this and continue to probe.
            self._slots[place[free], 1] = entries[free]
            won = self._slots[place[free], 1] == entries[free]
            winners = free[won]
            self._slots[place[winners], 0] = keys[winners]
            # A slot counts once, by its winner: all keys that claimed it saw the same previous content.
            self._num_filled += int(np.count_nonzero(held[winners] == EMPTY))
            lost = np.ones(keys.size, np.bool_)
            lost[winners] = False
            distance += 1
            keys = keys[lost]
            entries = entries[lost]
            place = (place[lost] + distance) & (self._slots.shape[0] - 1)

    def replace(self, slots: Int64, entries: Int64) -> None:
        """Replace the entries of the keys in `slots` (from `find`, without an insertion in between)."""
        self._slots[slots, 1] = entries

    def remove(self, keys: Int64) -> None:
        """Remove keys, all of which are present."""
        _, slots = self.find(keys)
        self._slots[slots, 1] = REMOVED

    def _home(self, keys: Int64) -> Int64:
        """Return the first slot of each key. Two multiplications spread runs of ids and their high bits."""
        mixed = keys.view(np.uint64) >> np.uint64(32)
        mixed ^= keys.view(np.uint64)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed >>= np.uint64(64 - self._num_bits)
        return mixed.view(np.int64)
