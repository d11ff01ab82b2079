"""Exact target ranks and top-K lists over a catalogue that is sharded over workers.

Each worker scores all users of a step against its own items, a tile at a time, so that no worker holds all item vectors. Items are
ordered by descending score, and equal scores by ascending id. The order is total, so no result depends on the size of tiles or the
number of workers.

One pass over the scores is enough, since the target's score is computed beforehand (target_counts.py).
Shapes: Q local users, B users of all ranks, V local items, D width, T targets.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sharding.world import World
from trainer.evaluation.next_item.target_counts import BoundedCounts, ExactCounts, expected_scores, score_bounds
from trainer.item_search.score_tiles import EXCLUDED, ItemShard, ScoreTiles
from trainer.item_search.top_lists import Best, TopLists

EXPECTED_ON = ("cpu",)  # devices on which products of any shape add in the same order

__all__ = ["EXCLUDED", "ItemShard", "Query", "Ranked", "rank_items"]


@dataclass(frozen=True)
class Query:
    """Users of this worker, with the items to leave out and the items to rank for each."""

    user_vectors: Tensor
    """(Q, D)."""
    seen: np.ndarray
    """Packed ids of the items that the user has seen."""
    seen_offsets: np.ndarray
    """(Q + 1,)."""
    targets: np.ndarray
    """(T,) packed ids of the items to rank."""
    target_offsets: np.ndarray
    """(Q + 1,)."""
    moments: np.ndarray | None = None
    """(Q,) int64, the moment of each user, for shards with `available_from`."""


@dataclass(frozen=True)
class Ranked:
    """Ranked lists of the users of a query."""

    target_ranks: np.ndarray
    """(T,) from 1; 0 where the target cannot be ranked (unknown, or left out as seen)."""
    top_items: np.ndarray
    """(Q, K) ids; 0 where fewer than K items are left."""
    top_scores: np.ndarray
    """(Q, K)."""


@dataclass(frozen=True)
class _Everyone:
    """The queries of all workers, concatenated."""

    users: Tensor
    """(B, D) vectors."""
    seen_pairs: Tensor
    """(user, item) rows of items to leave out."""
    target_pairs: Tensor
    """(user, item) rows of targets."""
    num_users: list[int]
    """The number of users of each worker."""
    first_target: int
    """The number of this worker's first target."""
    moments: Tensor | None = None
    """(B,) int64; None if every item is always a candidate."""


def rank_items(query: Query, shard: ItemShard, top: int, mask_seen: bool, block_items: int, world: World) -> Ranked:
    """Rank every target among all items that are not left out, and list the `top` best items per user. Collective.

    Args:
        query: this worker's users.
        shard: this worker's items.
        top: the length of the lists; 0 for none.
        mask_seen: whether to leave out the items that a user has seen.
        block_items: items scored at a time.
        world: the workers.
    """
    everyone = _gather_queries(query, mask_seen, world)
    pairs = everyone.target_pairs
    tiles = ScoreTiles(everyone.users, everyone.seen_pairs, shard, block_items, everyone.moments)
    counts = _counts_of(tiles, pairs, shard, world)
    lists = TopLists(everyone.users.shape[0], top, everyone.users)
    for tile in tiles if top or pairs.shape[0] else ():
        counts.add(tile)
        lists.add(tile)
    target_scores = world.max(counts.scores)
    ahead = counts.ahead_of(target_scores)
    if ahead is None:
        ahead = _counted_again(tiles, pairs, target_scores)
    target_ranks = torch.where(target_scores == EXCLUDED, 0, world.sum(ahead) + 1)
    best = Best.of(_over_workers(lists.finished(), everyone.num_users, top, world))
    my_targets = slice(everyone.first_target, everyone.first_target + query.targets.size)
    return Ranked(target_ranks[my_targets].cpu().numpy(), best.ids.cpu().numpy(), best.scores.cpu().numpy())


def _counts_of(tiles: ScoreTiles, pairs: Tensor, shard: ItemShard, world: World) -> ExactCounts | BoundedCounts:
    """Return the counts of a first pass. Collective."""
    if world.device.type in EXPECTED_ON:
        return ExactCounts(pairs, expected_scores(tiles.users, tiles.groups(), pairs, shard, world))
    return BoundedCounts(pairs, *score_bounds(tiles.users, pairs, shard, world))


def _counted_again(tiles: ScoreTiles, target_pairs: Tensor, target_scores: Tensor) -> Tensor:
    """Return the number of this worker's items ahead of each target, (T,), with known scores of the targets."""
    counts = ExactCounts(target_pairs, target_scores)
    for tile in tiles:
        counts.add(tile)
    ahead = counts.ahead_of(target_scores)
    assert ahead is not None
    return ahead


def _over_workers(keys: Tensor, num_users: list[int], top: int, world: World) -> Tensor:
    """Return the keys of the best items of all workers for the users of this worker, (Q, K). Collective.

    Args:
        keys: (B, K) keys of the best of this worker's items, for the users of all workers.
        num_users: number of users of each worker.
        top: K.
        world: the workers.
    """
    if world.world_size == 1:
        return keys
    mine = num_users[world.rank]
    sent, received = [top * size for size in num_users], [top * mine] * world.world_size
    of_workers = world.exchange(keys.reshape(-1), sent, received).view(world.world_size, mine, top)
    return of_workers.transpose(0, 1).flatten(1).topk(top, dim=1).values


def _gather_queries(query: Query, mask_seen: bool, world: World) -> _Everyone:
    """Return the queries of all workers. Collective."""
    sizes = world.gather_ints(query.user_vectors.shape[0])
    target_counts = world.gather_ints(query.targets.size)
    first_user = sum(sizes[: world.rank])
    seen = query.seen if mask_seen else query.seen[:0]
    seen_users = np.repeat(np.arange(query.seen_offsets.size - 1), np.diff(query.seen_offsets))
    seen_pairs = _pairs(seen_users[: seen.size], seen, first_user, world)
    target_users = np.repeat(np.arange(query.target_offsets.size - 1), np.diff(query.target_offsets))
    return _Everyone(
        users=torch.cat(world.gather(query.user_vectors)),
        seen_pairs=torch.cat(world.gather(seen_pairs)),
        target_pairs=torch.cat(world.gather(_pairs(target_users, query.targets, first_user, world))),
        num_users=sizes,
        first_target=sum(target_counts[: world.rank]),
        moments=None if query.moments is None else torch.cat(world.gather(_on(query.moments, world))),
    )


def _on(values: np.ndarray, world: World) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(world.device)


def _pairs(users: np.ndarray, items: np.ndarray, first_user: int, world: World) -> Tensor:
    """Return (user, item) rows, with the users' numbers among all workers."""
    return torch.from_numpy(np.stack((users + first_user, items), axis=1).astype(np.int64)).to(world.device)
