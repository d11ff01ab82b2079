"""Who goes when a table is full: an order found once for many evictions, so that a step costs what its batch costs.

A sweep looks at every entry and queues the sixteenth of them that should go first. Later steps take from the head of
the queue and pass over what was used since the sweep; when the queue is empty, the next sweep is due. Each place in the
queue is paid for by an eviction or by a use, so the cost per event is a constant, whatever the capacity.

Where the longest unused goes first this is exact, not an approximation: what is outside the queue was used no earlier
than anything in it, and a use only moves an entry back. In any other order, the queue is the order at the time of the sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

CHUNK_ENTRIES = 4096


@dataclass
class EvictionQueue:
    """entries[next:end] wait, first to go first, as found at step `swept_at`. What was used at that step or later has left."""

    entries: Int64
    next: int = 0
    end: int = 0
    swept_at: int = 0

    def take(self, num: int, step: int, last_used: Int64, used_until: int, sweep: Callable[[int], Int64]) -> Int64:
        """At most `num` entries that were last used at step `used_until` (before `step`) or earlier, in their order.

        `last_used` of every entry is read, and set to `step` for those taken, which so leave the queue. `sweep(n)` gives the
        first n to go among the entries not used at `step`. The first in order that was used too lately ends the search, so
        the order must be that of `last_used`, unless `used_until` is the step before.
        """
        taken: list[Int64] = []
        while num > 0:
            if self.next == self.end:
                found = sweep(self.entries.size)
                self.entries[: found.size] = found
                self.next, self.end, self.swept_at = 0, found.size, step
                if not found.size:
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
    """Places of the `num` smallest tuples (keys[0][i], keys[1][i], ...), smallest first; all of them if there are fewer.

    `num` is at least 1 and the tuples are distinct. Only those that are returned get sorted.
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
