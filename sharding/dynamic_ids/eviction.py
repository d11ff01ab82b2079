"""The order of evictions from a full table, computed once for many evictions, so that a step costs in proportion to its batch.

A sweep reads every entry and queues the sixteenth of all ranks' entries that is to be evicted first. Later steps take entries from
the head of the queue and skip those used since the sweep. When the queue is empty, the next sweep is due. An eviction or a use pays
for each place in the queue, so the cost per event is constant for any capacity.

Each rank has its own entries of the queue, with the keys by which all of them are ordered. So the queue, and what is evicted, does
not depend on the number of ranks.

For eviction of the longest unused this is exact. Entries outside of the queue were used no earlier than those in it, and a use
only moves an entry back. For any other order, the queue has the order at the time of the sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.dynamic_ids.selection import Chosen, Offer, smallest_of_all
from sharding.world import World

Int64 = NDArray[np.int64]

CHUNK_ENTRIES = 4096


@dataclass
class EvictionQueue:
    """This rank's part of the next entries to evict, as computed at step `swept_at`.

    Entries that were used at that step or later have left the queue.
    """

    capacity: int
    """Entries that a sweep queues, on all ranks together."""
    entries: Int64
    """(n,) this rank's entries, in order."""
    keys: Int64
    """(c, n) their keys at the time of the sweep."""
    next: int = 0
    """Place of the first entry that may still be in the queue."""
    swept_at: int = 0
    """Step of the last sweep."""

    @property
    def num_bytes(self) -> int:
        return self.entries.nbytes + self.keys.nbytes

    def take(
        self, num: int, step: int, last_used: Int64, used_until: int, sweep: Callable[[int], Offer], world: World
    ) -> Chosen:
        """Take at most `num` entries of all ranks that were last used at step `used_until` (before `step`) or earlier, in order.

        Returns those of this rank. Their keys begin with the number of sweeps made here before, since keys of different sweeps do
        not compare. The first entry in order that was used later ends the search. So the order has to be that of `last_used`,
        unless `used_until` is the step before. Collective.

        Args:
            num: number of entries at most, the same on every rank.
            step: the current step.
            last_used: step of the last use of every entry; set to `step` for the taken ones, which removes them from the queue.
            used_until: the latest last use.
            sweep: sweep(n) returns the first n entries of this rank to evict among those not used at `step`.
            world: all ranks.
        """
        taken: list[Chosen] = []
        while num > 0:
            chosen = smallest_of_all(lambda most: self._head(most, last_used, used_until), num, world)
            last_used[chosen.entries] = step
            taken.append(chosen)
            num -= chosen.num_of_all
            is_left = self._skip_used(last_used)
            # All that may be taken was taken: entries that are left are too young.
            if num <= 0 or any(world.gather_ints(int(is_left))):
                break
            swept = smallest_of_all(sweep, self.capacity, world)
            self.entries = swept.entries.copy()
            self.keys = swept.keys.copy()
            self.next = 0
            self.swept_at = step
            if not swept.num_of_all:
                break
        if not taken:
            return Chosen(self.entries[:0], np.empty((1 + self.keys.shape[0], 0), np.int64), 0)
        entries = np.concatenate([part.entries for part in taken])
        sweeps = np.repeat(np.arange(len(taken)), [part.entries.size for part in taken])
        keys = np.concatenate((sweeps[None], np.concatenate([part.keys for part in taken], axis=1)))
        return Chosen(entries, keys, sum(part.num_of_all for part in taken))

    def _head(self, most: int, last_used: Int64, used_until: int) -> Offer:
        """Offer the first `most` entries of this rank's queue that may be taken."""
        places: list[Int64] = []
        num = 0
        start = self.next
        while start < self.entries.size and num < most:
            waiting = self.entries[start : start + max(most, CHUNK_ENTRIES)]
            used = last_used[waiting]
            queued = np.flatnonzero(used < self.swept_at)
            young = used[queued] > used_until
            stop = int(young.argmax()) if young.any() else queued.size
            places.append(start + queued[: min(stop, most - num)])
            num += places[-1].size
            if stop < queued.size:
                break
            start += waiting.size
        chosen = np.concatenate(places) if places else np.empty(0, np.int64)
        return Offer(self.entries[chosen], self.keys[:, chosen], has_more=num == most)

    def _skip_used(self, last_used: Int64) -> bool:
        """Move the head past entries that have left the queue. Returns whether an entry is left."""
        while self.next < self.entries.size:
            waiting = self.entries[self.next : self.next + CHUNK_ENTRIES]
            queued = last_used[waiting] < self.swept_at
            if queued.any():
                self.next += int(queued.argmax())
                return True
            self.next += waiting.size
        return False

    def members(self, last_used: Int64) -> Int64:
        """Return this rank's entries that are still in the queue, in order."""
        waiting = self.entries[self.next :]
        return waiting[last_used[waiting] < self.swept_at]


def smallest(keys: Sequence[Int64], num: int) -> Int64:
    """Return the places of the `num` smallest tuples (keys[0][i], keys[1][i], ...), in order; all places if there are fewer.

    `num` is at least 1 and the tuples are distinct. Only the returned ones are sorted.
    """
    pool = np.arange(keys[0].size, dtype=np.int64)
    chosen: list[Int64] = []
    for key in keys:
        if pool.size <= num:
            break
        values = key[pool]
        threshold = np.partition(values, num - 1)[num - 1]
        chosen.append(pool[values < threshold])
        num -= chosen[-1].size
        pool = pool[values == threshold]
    places = np.concatenate([*chosen, pool[:num]])
    return places[np.lexsort([key[places] for key in reversed(keys)])]
