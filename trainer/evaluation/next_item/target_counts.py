"""Number of items ahead of each target, counted tile by tile in one pass over the scores.

An item is ahead of a target if its score is larger, or equal with a smaller id. On a CPU the score of a target is computed before
the pass, by a product of matrices that adds in the same order as that of a tile. So one comparison with each score is enough: items
before the target are ahead if they reach its score, and items after it if they exceed it.

The order in which a product adds may depend on its shape, and on a GPU it often does. There a target has bounds of its score.
Items above them are ahead and those below are not. The items between, which are few, are kept until the pass has reached the target
itself. Both ways compare with what the pass has found, and a second pass counts again where the score was another.
Shapes: B users of all ranks, V local items, D width, T targets, r targets of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sharding.world import World
from trainer.item_search.score_tiles import EXCLUDED, ItemShard, Tile

MAX_CLOSE = 1 << 21  # items between bounds that are kept
# Two sums of D products, added in any order, usually differ by far less than sqrt(D) eps sum |products|, and never by more than
# about D eps sum |products| (Higham 2002, Accuracy and Stability of Numerical Algorithms, sections 2.8 and 3.1). Bounds that are
# wider keep more items; a target outside of its bounds costs a second pass.
SLACK = 1.0
EXPECTED_TARGETS = 128  # targets of a product that computes their scores beforehand
# Rows and columns of such a product, at least. Smaller ones may add in another order than a tile.
LEAST_SIZE = 64


def score_bounds(users: Tensor, target_pairs: Tensor, shard: ItemShard, world: World) -> tuple[Tensor, Tensor]:
    """Return bounds (T,) and (T,) of the score of each target; infinity for one that no worker has. Collective.

    Args:
        users: (B, D) vectors.
        target_pairs: (T, 2) of a user's number and an item, by user.
        shard: this worker's items.
        world: the workers.
    """
    user, place, here = _here(target_pairs, shard)
    products = users[user] * shard.vectors[place]
    score = products.sum(dim=1)
    rounding = SLACK * (4 + users.shape[1] ** 0.5) * torch.finfo(products.dtype).eps
    slack = rounding * products.abs().sum(dim=1)
    bounds = users.new_full((2, target_pairs.shape[0]), EXCLUDED)
    bounds[:, here] = torch.stack((score - slack, score + slack)).nan_to_num_(nan=EXCLUDED, posinf=float("inf"))
    bounds = world.max(bounds)
    bounds = torch.where(bounds == EXCLUDED, float("inf"), bounds)
    return bounds[0], bounds[1]


def expected_scores(users: Tensor, groups: list[slice], target_pairs: Tensor, shard: ItemShard, world: World) -> Tensor:
    """Return the score of each target as a tile has it, (T,), usually; minus infinity for one that no worker has. Collective.

    Args:
        users: (B, D) vectors.
        groups: users of a tile.
        target_pairs: as for `score_bounds`.
        shard: this worker's items.
        world: the workers.
    """
    user, place, here = _here(target_pairs, shard)
    expected = users.new_full((target_pairs.shape[0],), EXCLUDED)
    for group in groups:
        first, stop = _places_in(user, group)
        for start in range(first, stop, EXPECTED_TARGETS):
            part = slice(start, min(start + EXPECTED_TARGETS, stop))
            size = part.stop - part.start
            low = max(group.start, min(int(user[part.start]), group.stop - LEAST_SIZE))
            high = min(group.stop, max(int(user[part.stop - 1]) + 1, low + LEAST_SIZE))
            columns = F.pad(place[part], (0, max(0, LEAST_SIZE - size)))
            scores = torch.mm(users[low:high], shard.vectors[columns].T)
            expected[here[part]] = scores[user[part] - low, torch.arange(size, device=user.device)]
    return world.max(expected.nan_to_num_(nan=EXCLUDED, posinf=float("inf"), neginf=EXCLUDED))


def _here(target_pairs: Tensor, shard: ItemShard) -> tuple[Tensor, Tensor, Tensor]:
    """Return the users of the targets that a worker has, the places of their items in its share, and the targets' numbers."""
    user, item = target_pairs.unbind(dim=1)
    place = item - shard.first_id
    here = ((place >= 0) & (place < shard.num_items)).nonzero().flatten()
    return user[here], place[here], here


def _places_in(users: Tensor, group: slice) -> tuple[int, int]:
    """Return the bounds of a group's users in ascending numbers of users, on the CPU."""
    first, stop = torch.searchsorted(users, torch.tensor((group.start, group.stop), device=users.device)).tolist()
    return first, stop


class Comparison(Protocol):
    """An elementwise comparison of torch."""

    def __call__(self, scores: Tensor, bound: Tensor, /, *, out: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _Rows:
    """Targets of the users of a tile."""

    targets: slice
    """The targets, r."""
    scores: Tensor
    """(r, width) scores of the user of each."""
    is_here: Tensor
    """(r,) bool, whether the tile has the target itself."""


class _Counts:
    """State that both ways of counting share: counts, scores and rows of targets."""

    def __init__(self, target_pairs: Tensor, like: Tensor) -> None:
        self.pairs = target_pairs
        self.scores = like.new_full((target_pairs.shape[0],), EXCLUDED)
        """(T,) scores of the targets that this worker has and that are not left out."""
        self.ahead = torch.zeros(target_pairs.shape[0], dtype=torch.int64, device=like.device)
        self._flags = like.new_empty(0)
        self._users = target_pairs[:, 0].cpu().contiguous()

    def rows_of(self, tile: Tile) -> Iterator[_Rows]:
        """Yield the rows of the targets of a tile's users, and note the scores of the targets that it has."""
        first, stop = _places_in(self._users, tile.users)
        # As many rows at a time as the tile has, so that memory does not grow with the number of targets.
        rows_each = tile.scores.shape[0]
        for start in range(first, stop, rows_each):
            targets = slice(start, min(start + rows_each, stop))
            user, item = self.pairs[targets].unbind(dim=1)
            row = user - tile.users.start
            column = item - tile.first_id
            is_here = (column >= 0) & (column < tile.num_items)
            here = is_here.nonzero().flatten()
            self.scores[targets][here] = tile.scores[row[here], column[here]]
            # With one target per user, the usual case (leave-one-out), the rows need no copy.
            plain = row.numel() == tile.scores.shape[0] and bool((row.diff() == 1).all())
            yield _Rows(targets, tile.scores if plain else tile.scores[row], is_here)

    def count(self, compare: Comparison, rows: Tensor, bound: Tensor) -> Tensor:
        """Return how many scores of each row (r, width) compare as true with its bound (r, 1), as floating-point numbers (r,).

        Flags of the dtype of the scores are several times as fast on a CPU as booleans, and their sums are exact.
        """
        if self._flags.numel() < rows.numel():
            self._flags = rows.new_empty(rows.numel())
        flags = self._flags[: rows.numel()].view(rows.shape)
        return compare(rows, bound, out=flags).sum(dim=1)


class ExactCounts:
    """Counts of the items of this worker that are ahead of T targets of known scores.

    Args:
        target_pairs: (T, 2) of a user's number and an item, by user.
        expected: (T,) scores of the targets.
    """

    def __init__(self, target_pairs: Tensor, expected: Tensor) -> None:
        self.expected = expected
        # The smallest score above. Nothing exceeds infinity, and nothing reaches NaN.
        above = expected.nextafter(torch.full_like(expected, float("inf")))
        self._above = torch.where(expected == float("inf"), float("nan"), above)
        self._counts = _Counts(target_pairs, expected)

    @property
    def scores(self) -> Tensor:
        """The scores of the targets that this worker has and that are not left out, (T,)."""
        return self._counts.scores

    def add(self, tile: Tile) -> None:
        """Count the items of a tile."""
        counts = self._counts
        for rows in counts.rows_of(tile):
            expected = self.expected[rows.targets]
            above = self._above[rows.targets]
            item = counts.pairs[rows.targets, 1]
            bound = torch.where(item >= tile.first_id + tile.num_items, expected, above)
            counts.ahead[rows.targets] += counts.count(torch.ge, rows.scores, bound[:, None]).long()
            here = rows.is_here.nonzero().flatten()
            equal = counts.count(torch.eq, rows.scores[here], expected[here, None])
            tied = here[(equal > 1).nonzero().flatten()]  # to another item than the target
            if tied.numel():
                column = torch.arange(rows.scores.shape[1], device=tied.device)
                is_before = column < (item[tied] - tile.first_id)[:, None]
                before = (rows.scores[tied] == expected[tied, None]) & is_before
                counts.ahead[rows.targets][tied] += before.sum(dim=1)

    def ahead_of(self, scores: Tensor) -> Tensor | None:
        """Return the number of items ahead of each target, (T,) int64; None if the expected scores were others.

        scores: (T,) of the targets, from the worker that has each.
        """
        is_right = (scores == self.expected) | (scores == EXCLUDED)
        return self._counts.ahead if bool(is_right.all()) else None


class BoundedCounts:
    """Counts of the items of this worker that are ahead of T targets of scores within bounds.

    Args:
        target_pairs: (T, 2) of a user's number and an item, by user.
        low: (T,) lower bounds of the targets' scores.
        high: (T,) upper bounds.
    """

    def __init__(self, target_pairs: Tensor, low: Tensor, high: Tensor) -> None:
        self.low = low
        self.high = high
        self._counts = _Counts(target_pairs, low)
        self._close: list[tuple[Tensor, Tensor, Tensor]] = []  # target, id and score of items between bounds
        self._num_close = 0

    @property
    def scores(self) -> Tensor:
        """The scores of the targets that this worker has and that are not left out, (T,)."""
        return self._counts.scores

    def add(self, tile: Tile) -> None:
        """Count the items of a tile."""
        for rows in self._counts.rows_of(tile):
            self._add(tile, rows)

    def ahead_of(self, scores: Tensor) -> Tensor | None:
        """Return the number of items ahead of each target, (T,) int64; None if the bounds were of no use.

        scores: (T,) of the targets, from the worker that has each.
        """
        within = ((self.low <= scores) & (scores <= self.high)) | (scores == EXCLUDED)
        if self._num_close > MAX_CLOSE or not bool(within.all()):
            return None
        counts = self._counts
        if self._close:
            target, ids, score = (torch.cat(columns) for columns in zip(*self._close, strict=True))
            equal_before = (score == scores[target]) & (ids < counts.pairs[target, 1])
            is_ahead = (score > scores[target]) | equal_before
            counts.ahead += torch.bincount(target[is_ahead], minlength=counts.ahead.numel())
            self._close = []
        return counts.ahead

    def _add(self, tile: Tile, rows: _Rows) -> None:
        low = self.low[rows.targets, None]
        high = self.high[rows.targets, None]
        above = self._counts.count(torch.gt, rows.scores, high)
        close = self._counts.count(torch.ge, rows.scores, low) - above - rows.is_here.to(above.dtype)
        self._counts.ahead[rows.targets] += above.long()
        # Other items than the target between its bounds are rare, and cost more passes over the scores of their rows.
        which = (close > 0).nonzero().flatten()
        if not which.numel() or self._num_close > MAX_CLOSE:
            return
        between = (rows.scores[which] >= low[which]) & (rows.scores[which] <= high[which])
        number, place = between.nonzero(as_tuple=True)
        target, ids = rows.targets.start + which[number], place + tile.first_id
        self._num_close += target.numel()
        self._close.append((target, ids, rows.scores[which[number], place]))
        if self._num_close > MAX_CLOSE:
            self._close = []
