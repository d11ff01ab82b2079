"""Exact target ranks and top-K lists over a catalogue that is sharded over workers.

Each worker scores all users of a step against its own items, block by block, so memory is bounded by users x block, and no worker
holds all item vectors. Items are ordered by descending score, and equal scores by ascending id. The order is total, so no result
depends on the block size or the number of workers.
Shapes: Q local users, B users of all ranks, V local items, D width, T targets.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sharding.world import World

EXCLUDED = float("-inf")


@dataclass(frozen=True)
class ItemShard:
    """The items that this worker scores."""

    vectors: Tensor
    """(V, D) of ids first_id .. first_id + V - 1."""
    first_id: int
    """The smallest id."""
    available_from: Tensor | None = None
    """(V,) int64, the first moment at which each item is a candidate; None: always."""


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
    first_user: int
    """The number of this worker's first user."""
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
    # Two passes: the targets' scores are needed before counting. A single block is kept, several are computed again.
    kept = list(_blocks(everyone, shard, block_items)) if shard.vectors.shape[0] <= block_items else None
    target_scores = _target_scores(everyone, kept or _blocks(everyone, shard, block_items), world)
    ahead = torch.zeros(everyone.target_pairs.shape[0], dtype=torch.int64, device=world.device)
    best = _Best.empty(everyone.users.shape[0], world.device)
    for first_id, scores in kept or _blocks(everyone, shard, block_items):
        ahead += _count_ahead(scores, first_id, everyone.target_pairs, target_scores)
        if top:
            best = best.merged(_top(scores, first_id, top), top)
    world.sum(ahead)
    target_ranks = torch.where(target_scores == EXCLUDED, 0, ahead + 1)
    if top:
        best = best.over_ranks(top, world)
    mine = slice(everyone.first_user, everyone.first_user + query.user_vectors.shape[0])
    my_targets = slice(everyone.first_target, everyone.first_target + query.targets.size)
    top_items = torch.where(best.scores[mine] == EXCLUDED, 0, best.ids[mine])
    return Ranked(target_ranks[my_targets].cpu().numpy(), top_items.cpu().numpy(), best.scores[mine].cpu().numpy())


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
        first_user=first_user,
        first_target=sum(target_counts[: world.rank]),
        moments=None if query.moments is None else torch.cat(world.gather(_on(query.moments, world))),
    )


def _on(values: np.ndarray, world: World) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(world.device)


def _pairs(users: np.ndarray, items: np.ndarray, first_user: int, world: World) -> Tensor:
    """Return (user, item) rows, with the users' numbers among all workers."""
    return torch.from_numpy(np.stack((users + first_user, items), axis=1).astype(np.int64)).to(world.device)


def _blocks(everyone: _Everyone, shard: ItemShard, block_items: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (first id, scores (B, block)) of this worker's items, with left-out items at minus infinity."""
    for start in range(0, shard.vectors.shape[0], block_items):
        vectors = shard.vectors[start : start + block_items]
        first_id = shard.first_id + start
        # A comparison with a score that is not a number is always false, which would put its item first.
        scores = (everyone.users @ vectors.T).nan_to_num_(nan=EXCLUDED, posinf=float("inf"), neginf=EXCLUDED)
        user, item = everyone.seen_pairs.unbind(dim=1)
        here = (item >= first_id) & (item < first_id + vectors.shape[0])
        scores[user[here], item[here] - first_id] = EXCLUDED
        if shard.available_from is not None:
            assert everyone.moments is not None
            from_V = shard.available_from[start : start + block_items]
            scores.masked_fill_(from_V[None, :] > everyone.moments[:, None], EXCLUDED)
        yield first_id, scores


def _target_scores(everyone: _Everyone, blocks: Iterable[tuple[int, Tensor]], world: World) -> Tensor:
    """Return the scores of all targets, (T,), from the same products as the scores of the other items."""
    user, item = everyone.target_pairs.unbind(dim=1)
    scores_T = torch.full((item.numel(),), EXCLUDED, dtype=everyone.users.dtype, device=world.device)
    for first_id, scores in blocks:
        here = (item >= first_id) & (item < first_id + scores.shape[1])
        scores_T[here] = scores[user[here], item[here] - first_id]
    return world.max(scores_T)


def _count_ahead(scores: Tensor, first_id: int, target_pairs: Tensor, target_scores: Tensor) -> Tensor:
    """Return how many items of the block come before each target in the order by (score, id), (T,)."""
    user, item = target_pairs.unbind(dim=1)
    # With one target per user, the usual case (leave-one-out), the rows need no copy.
    plain = user.numel() == scores.shape[0] and bool((user == torch.arange(user.numel(), device=user.device)).all())
    rows_TV = scores if plain else scores[user]
    ahead = true_counts(rows_TV > target_scores[:, None])
    # Ids decide only where another item has the target's score, which is rare and costs two more passes over the scores.
    own = (item >= first_id) & (item < first_id + scores.shape[1])
    tied = (true_counts(rows_TV >= target_scores[:, None]) > ahead + own).nonzero().flatten()
    if tied.numel():
        ids_V = torch.arange(first_id, first_id + scores.shape[1], device=scores.device)
        equal = rows_TV[tied] == target_scores[tied, None]
        ahead[tied] += true_counts(equal & (ids_V[None, :] < item[tied, None]))
    return ahead


def true_counts(mask_RV: Tensor) -> Tensor:
    """Return how many entries of each row (of at least one) are true, (R,) int64.

    On a CPU torch first converts the whole mask to int64, eight times its size, which takes longer than the comparison that made
    it. Here eight bytes are added at once as one number, and only so many that each byte stays below 256.
    """
    if mask_RV.device.type != "cpu":
        return mask_RV.sum(dim=1)
    words_RW = F.pad(mask_RV, (0, -mask_RV.shape[1] % 8)).view(torch.int64)
    counts_R = torch.zeros(mask_RV.shape[0], dtype=torch.int64)
    for chunk in words_RW.split(255, dim=1):
        counts_R += chunk.sum(dim=1).view(torch.uint8).view(-1, 8).sum(dim=1)
    return counts_R


@dataclass(frozen=True)
class _Best:
    """The best items so far of each user, in order."""

    ids: Tensor
    """(B, k)."""
    scores: Tensor
    """(B, k)."""

    @staticmethod
    def empty(num_users: int, device: torch.device) -> "_Best":
        """Return lists without items."""
        return _Best(
            torch.zeros((num_users, 0), dtype=torch.int64, device=device), torch.zeros((num_users, 0), device=device)
        )

    def merged(self, other: "_Best", top: int) -> "_Best":
        """Return the `top` best of both."""
        ids, scores = torch.cat((self.ids, other.ids), dim=1), torch.cat((self.scores, other.scores), dim=1)
        by_id = ids.argsort(dim=1, stable=True)
        ids, scores = ids.gather(1, by_id), scores.gather(1, by_id)
        by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
        return _Best(ids.gather(1, by_score), scores.gather(1, by_score))

    def over_ranks(self, top: int, world: World) -> "_Best":
        """Return the best items of all workers. Shards may hold fewer than `top` items, so lists are padded to be gathered."""
        missing = top - self.ids.shape[1]
        ids = F.pad(self.ids, (0, missing), value=0)
        scores = F.pad(self.scores, (0, missing), value=EXCLUDED)
        everywhere = [_Best(i, s) for i, s in zip(world.gather(ids), world.gather(scores), strict=True)]
        merged = everywhere[0]
        for other in everywhere[1:]:
            merged = merged.merged(other, top)
        return merged


def _top(scores: Tensor, first_id: int, top: int) -> _Best:
    """Return the `top` best items of a block in the order by (score, id)."""
    count = min(top, scores.shape[1])
    values, columns = scores.topk(count, dim=1)
    # topk guarantees no order among equal scores. Where the last place is tied with an item left out, sort the whole row.
    last = values[:, -1:]
    ambiguous = (true_counts(scores == last) > true_counts(values == last)).nonzero().flatten()
    if ambiguous.numel():
        order = scores[ambiguous].argsort(dim=1, descending=True, stable=True)[:, :count]
        values[ambiguous], columns[ambiguous] = scores[ambiguous].gather(1, order), order
    return _Best.empty(scores.shape[0], scores.device).merged(_Best(columns + first_id, values), count)
