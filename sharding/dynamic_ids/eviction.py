"""The order of evictions from a full table, computed once for many evictions, so that a step costs in proportion to its batch.

A sweep reads every entry and queues the sixteenth that is to be evicted first. Later steps take entries from the head of the
queue and skip those used since the sweep. When the queue is empty, the next sweep is due. An eviction or a use pays for each
place in the queue, so the cost per event is constant for any capacity.

For eviction of the longest unused this is exact. Entries outside of the queue were used no earlier than those in it, and a use
only moves an entry back. For any other order, the queue has the order at the time of the sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

CHUNK_ENTRIES = 4096


@dataclass
class EvictionQueue:
    """The next entries to evict: entries[next:end], in order, as computed at step `swept_at`.

    Entries that were used at that step or later have left the queue.
    """

    entries: Int64
    next: int = 0
    end: int = 0
    swept_at: int = 0

    def take(self, num: int, step: int, last_used: Int64, used_until: int, sweep: Callable[[int], Int64]) -> Int64:
        """Take at most `num` entries that were last used at step `used_until` (before `step`) or earlier, in order.

        The first entry in order that was used later ends the search. So the order has to be that of `last_used`, unless
        `used_until` is the step before.

        Args:
            num: number of entries at most.
            step: the current step.
            last_used: step of the last use of every entry; set to `step` for the taken ones, which removes them from the queue.
            used_until: the latest last use.
            sweep: sweep(n) returns the first n entries to evict among those not used at `step`.
        """
        taken: list[Int64] = []
        while num > 0:
            if self.next == self.end:
                swept = sweep(self.entries.size)
                self.entries[: swept.size] = swept
                self.next = 0
                self.end = swept.size
                self.swept_at = step
                if not swept.size:
                    break
            waiting = self.entries[self.next : min(self.end, self.next + max(num, CHUNK_ENTRIES))]
            used = last_used[waiting]
            places = np.flatnonzero(used < self.swept_at)
            young = used[places] > used_until
            stop = int(young.argmax()) if young.any() else places.size
            chosen = places[: min(stop, num)]
            last_used[waiting[chosen]] = step
            taken.append(waiting[chosen])
            num -= chosen.size
            if num > 0 and stop < places.size:
                self.next += int(places[stop])
                break
            self.next += waiting.size if num > 0 else int(chosen[-1]) + 1
        return np.concatenate(taken) if taken else np.empty(0, np.int64)


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
