"""Exact target ranks and top items where a baseline scores a few items per user, and all others follow a common order.

The cost depends on the listed and seen items, not on the catalogue: the place of an item that is not listed is its place in the
common order, less the removed items before it, plus the listed ones. So every worker ranks its own users alone, and no result
depends on batches or on the number of workers.
Shapes: Q users, P listed pairs, T targets, V items.
"""

from dataclasses import dataclass

import numpy as np

from trainer.data.stream.held_out import NOTHING, HeldOutBatch
from trainer.evaluation.next_item.baselines.order import ItemOrder


@dataclass(frozen=True)
class Listed:
    """Scored items of Q users. No pair of user and item occurs twice."""

    users: np.ndarray
    """(P,) int64 numbers of users within the batch."""
    items: np.ndarray
    """(P,) int64 ids, none of them 0."""
    scores: np.ndarray
    """(P,) int64; larger is better. Equal scores follow the common order."""


NO_ITEMS = Listed(NOTHING, NOTHING, NOTHING)


@dataclass(frozen=True)
class BaselineRanks:
    """Ranked lists of the users of a batch."""

    target_ranks: np.ndarray
    """(T,) int64 from 1; 0 where the target cannot be ranked (unknown, or masked as seen)."""
    top_items: np.ndarray
    """(Q, K) int64 ids; 0 where fewer than K items are left."""


def masked_pairs(held: HeldOutBatch, num_items: int, mask_seen: bool) -> np.ndarray:
    """Return the pairs to leave out as ascending numbers user * (V + 1) + item, each once; none unless seen items are masked."""
    if not mask_seen:
        return NOTHING
    users = np.repeat(np.arange(held.row_ids.size), np.diff(held.seen_offsets))
    return np.unique((users * (num_items + 1) + held.seen)[held.seen > 0])


def rank_listed(order: ItemOrder, listed: Listed, held: HeldOutBatch, masked: np.ndarray, top: int) -> BaselineRanks:
    """Rank every target among all items that are not masked, and return the `top` best items per user.

    Args:
        order: the order of the items that are not listed.
        listed: the scored items; masked ones are left out here.
        held: the users with their seen items and targets.
        masked: the pairs to leave out (masked_pairs).
        top: K.
    """
    num_users = held.row_ids.size
    size = order.num_items + 1
    own = listed.users * size + listed.items
    kept = ~_contains(masked, own)
    ahead = np.lexsort((order.places[listed.items[kept]], -listed.scores[kept], listed.users[kept]))
    users, items = listed.users[kept][ahead], listed.items[kept][ahead]
    counts = np.bincount(users, minlength=num_users)
    positions = np.arange(users.size) - np.repeat(np.cumsum(counts) - counts, counts)
    # Items that the common order does not show, as user * size + place, ascending.
    removed_pairs = np.union1d(masked, users * size + items)
    removed = np.sort(removed_pairs // size * size + order.places[removed_pairs % size])
    return BaselineRanks(
        _target_ranks(order, held, masked, (users * size + items, positions), counts, removed),
        _top_items(order, (users, items, positions), counts, removed, top),
    )


def _target_ranks(
    order: ItemOrder,
    held: HeldOutBatch,
    masked: np.ndarray,
    listed: tuple[np.ndarray, np.ndarray],
    counts: np.ndarray,
    removed: np.ndarray,
) -> np.ndarray:
    size = order.num_items + 1
    user = np.repeat(np.arange(counts.size), np.diff(held.target_offsets))
    known = (held.targets > 0) & (held.targets < size)
    item = np.where(known, held.targets, 0)
    pair = user * size + item
    place = order.places[item]
    before = np.searchsorted(removed, user * size + place) - np.searchsorted(removed, user * size)
    ranks = counts[user] + place - before + 1
    pairs, positions = listed
    by_pair = np.argsort(pairs)
    is_listed = _contains(pairs[by_pair], pair)
    found_at = np.searchsorted(pairs[by_pair], pair[is_listed])
    ranks[is_listed] = positions[by_pair][found_at] + 1
    return np.where(known & ~_contains(masked, pair), ranks, 0)


def _top_items(
    order: ItemOrder,
    listed: tuple[np.ndarray, np.ndarray, np.ndarray],
    counts: np.ndarray,
    removed: np.ndarray,
    top: int,
) -> np.ndarray:
    users, items, positions = listed
    size = order.num_items + 1
    every = np.arange(counts.size)
    starts = np.searchsorted(removed, every * size)
    number = np.arange(removed.size) - starts[removed // size]
    # Items of the common order that are shown before each removed one: never falls within a user.
    shown_before = removed - number
    wanted = (
        np.arange(top) - counts[:, None]
    )  # (Q, K) number among the shown items; negative where a listed item stands
    skipped = (
        np.searchsorted(shown_before, every[:, None] * size + np.maximum(wanted, 0), side="right") - starts[:, None]
    )
    place = np.maximum(wanted, 0) + skipped
    best = np.where(place < order.num_items, order.items[np.minimum(place, order.num_items - 1)], 0)
    inside = positions < top
    best[users[inside], positions[inside]] = items[inside]
    return best


def _contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a mask of the values that are among ascending ones."""
    place = np.searchsorted(ascending, values)
    inside: np.ndarray = np.zeros(values.size, dtype=np.bool_)
    possible = place < ascending.size
    inside[possible] = ascending[place[possible]] == values[possible]
    return inside
