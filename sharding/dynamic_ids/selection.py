"""Selection of the smallest keys of all ranks, without gathering them.

A key is a tuple of integers, given as one column per element. Keys are compared element by element, and differ between ranks, so
the result is exact and the same for every division of the keys over ranks. Ranks exchange samples of their sorted keys until the
boundary is known: at most `SAMPLES` keys of each rank at a time, whatever the number of keys.

All functions are collective. The number of their collectives depends on what all ranks know, never on one rank alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sharding.world import World

Int64 = NDArray[np.int64]

SAMPLES = 128


@dataclass(frozen=True)
class Offer:
    """Entries of this rank in the order of their keys."""

    entries: Int64
    """(n,) numbers of entries."""
    keys: Int64
    """(c, n) one row per element of a key; columns ascend."""
    has_more: bool = False
    """True if the rank has entries with larger keys that it did not offer."""


@dataclass(frozen=True)
class Chosen:
    """Entries of this rank that all ranks chose together, in the order of their keys."""

    entries: Int64
    """(n,) numbers of entries."""
    keys: Int64
    """(c, n) one row per element of a key; columns ascend."""
    num_of_all: int
    """Number of chosen entries of all ranks."""


def smallest_of_all(offer: Callable[[int], Offer], num: int, world: World) -> Chosen:
    """Return this rank's entries among the `num` smallest of all ranks, or all entries if there are fewer. Collective.

    Args:
        offer: Returns this rank's smallest entries, at most as many as its argument.
        num: Number of entries of all ranks, the same on every rank.
        world: All ranks.
    """
    # Hashing spreads entries evenly: a rank hardly ever has more of the smallest than its share and four standard deviations.
    share = num // world.world_size
    most = num if world.world_size == 1 else min(num, share + 4 * int(share**0.5) + 16)
    while True:
        offered = offer(most)
        count, num_of_all = num_among_smallest(offered.keys, num, world)
        # If all of an offer was taken, entries that were not offered may be smaller than those of other ranks.
        is_short = offered.has_more and count == offered.entries.size
        if most == num or not any(world.gather_ints(int(is_short))):
            return Chosen(offered.entries[:count], offered.keys[:, :count], num_of_all)
        most = min(num, 2 * most)


def num_among_smallest(keys: Int64, num: int, world: World) -> tuple[int, int]:
    """Return how many keys are among the `num` smallest of all ranks: on this rank, and on all ranks. Collective.

    The second number is `num`, or the number of all keys if there are fewer.

    Args:
        keys: (c, n) in ascending order.
        num: The same on every rank.
        world: All ranks.
    """
    if world.world_size == 1:
        return (count := min(num, keys.shape[1])), count
    first, end = 0, keys.shape[1]  # keys before `first` are among the smallest, keys from `end` on are not
    while True:
        known = np.asarray(world.gather_numbers([first, end]))
        sizes = known[:, 1] - known[:, 0]
        missing = num - int(known[:, 0].sum())
        if missing <= 0:
            return first, num
        if int(sizes.sum()) <= missing:
            return end, int(known[:, 1].sum())
        lower, upper = _bounds(keys[:, first:end], sizes, missing, world)
        undecided = keys[:, first:end]
        end = first + (undecided.shape[1] if upper is None else num_up_to(undecided, upper))
        first += 0 if lower is None else num_up_to(undecided, lower)
        if sizes.max() <= SAMPLES:  # every key was a sample
            return first, num


def _bounds(keys: Int64, sizes: Int64, num: int, world: World) -> tuple[Int64 | None, Int64 | None]:
    """Return a key that is among the `num` smallest, and one that no smaller key of them exceeds; None if unknown. Collective.

    Every rank gives evenly spaced samples. Between two samples of a rank, its number of keys up to a given one is known to be
    between two bounds, and the bounds of all ranks are summed.
    """
    places = [_sample_places(int(size)) for size in sizes]
    own = torch.from_numpy(np.ascontiguousarray(keys[:, places[world.rank]].T)).to(world.device)
    samples = torch.cat(world.gather_sized(own, [of_rank.size for of_rank in places])).cpu().numpy()
    order = np.lexsort(samples.T[::-1])
    at_least = np.concatenate([np.diff(of_rank, prepend=-1) for of_rank in places])
    at_most = np.concatenate(
        [np.diff(of_rank, append=size) for of_rank, size in zip(places, sizes.tolist(), strict=True)]
    )
    reached = np.flatnonzero(np.cumsum(at_least[order]) >= num)
    within = np.flatnonzero(np.cumsum(at_most[order]) <= num)
    lower = samples[order[within[-1]]] if within.size else None
    upper = samples[order[reached[0]]] if reached.size else None
    return lower, upper


def _sample_places(size: int) -> Int64:
    """Return the places of evenly spaced samples of `size` keys, the first key among them."""
    count = min(SAMPLES, size)
    return np.arange(count, dtype=np.int64) * size // max(1, count)


def num_up_to(keys: Int64, limit: Int64) -> int:
    """Return how many of the ascending keys, (c, n), are at most `limit`, (c,)."""
    first, end = 0, keys.shape[1]
    for column, value in zip(keys, limit, strict=True):
        part = column[first:end]
        first, end = (
            first + int(np.searchsorted(part, value, "left")),
            first + int(np.searchsorted(part, value, "right")),
        )
    return int(end)
