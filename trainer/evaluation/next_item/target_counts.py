"""Number of items ahead of each target, counted tile by tile in one pass over the scores.

The score of a target is known before the pass only up to rounding, since a product of matrices may add in another order than any
other code. So each target has bounds of its score. Items above them are ahead and those below are not. The items between, which are
few, are kept until the pass has reached the target's own score.
Shapes: B users of all ranks, V local items, D width, T targets, r targets of a tile.
"""

from typing import Protocol

import torch
from torch import Tensor

from sharding.world import World
from trainer.evaluation.next_item.score_tiles import EXCLUDED, ItemShard, Tile

MAX_CLOSE = 1 << 21  # items between bounds that are kept
# Two sums of D products, added in any order, usually differ by far less than sqrt(D) eps sum |products|, and never by more than
# about D eps sum |products| (Higham 2002, Accuracy and Stability of Numerical Algorithms, sections 2.8 and 3.1). Bounds that are
# wider keep more items; a target outside of its bounds costs a second pass.
SLACK = 1.0


def score_bounds(users: Tensor, target_pairs: Tensor, shard: ItemShard, world: World) -> tuple[Tensor, Tensor]:
    """Return bounds (T,) and (T,) of the score of each target; infinity for one that no worker has. Collective.

    Args:
        users: (B, D) vectors.
        target_pairs: (T, 2) of a user's number and an item, by user.
        shard: this worker's items.
        world: the workers.
    """
    user, item = target_pairs.unbind(dim=1)
    place = item - shard.first_id
    here = ((place >= 0) & (place < shard.vectors.shape[0])).nonzero().flatten()
    products = users[user[here]] * shard.vectors[place[here]]
    score = products.sum(dim=1)
    rounding = SLACK * (4 + users.shape[1] ** 0.5) * torch.finfo(products.dtype).eps
    slack = rounding * products.abs().sum(dim=1)
    bounds = users.new_full((2, user.numel()), EXCLUDED)
    bounds[:, here] = torch.stack((score - slack, score + slack)).nan_to_num_(nan=EXCLUDED, posinf=float("inf"))
    bounds = world.max(bounds)
    bounds = torch.where(bounds == EXCLUDED, float("inf"), bounds)
    return bounds[0], bounds[1]


class Comparison(Protocol):
    """An elementwise comparison of torch."""

    def __call__(self, scores: Tensor, bound: Tensor, /, *, out: Tensor) -> Tensor: ...


class TargetCounts:
    """Counts of the items of this worker that are ahead of T targets.

    Args:
        target_pairs: (T, 2) of a user's number and an item, by user.
        low: (T,) lower bounds of the targets' scores.
        high: (T,) upper bounds.
        is_exact: whether both bounds are the scores themselves.
    """

    def __init__(self, target_pairs: Tensor, low: Tensor, high: Tensor, is_exact: bool = False) -> None:
        self.pairs = target_pairs
        self.low = low
        self.high = high
        self.is_exact = is_exact
        self.scores = torch.full_like(low, EXCLUDED)
        """(T,) scores of the targets that this worker has and that are not left out."""
        self._ahead = torch.zeros(low.shape, dtype=torch.int64, device=low.device)
        self._close: list[tuple[Tensor, Tensor, Tensor]] = []  # target, id and score of items between bounds
        self._num_close = 0
        self._flags = low.new_empty(0)
        self._users = target_pairs[:, 0].cpu().contiguous()

    def add(self, tile: Tile) -> None:
        """Count the items of a tile."""
        bounds = torch.tensor((tile.users.start, tile.users.stop))
        first, stop = torch.searchsorted(self._users, bounds).tolist()
        # As many rows at a time as the tile has, so that memory does not grow with the number of targets.
        rows_each = tile.scores.shape[0]
        for start in range(first, stop, rows_each):
            self._add(tile, slice(start, min(start + rows_each, stop)))

    def ahead_of(self, scores: Tensor) -> Tensor | None:
        """Return the number of items ahead of each target, (T,) int64; None if the bounds were of no use.

        scores: (T,) of the targets, from the worker that has each.
        """
        within = ((self.low <= scores) & (scores <= self.high)) | (scores == EXCLUDED)
        if self._num_close > MAX_CLOSE or not bool(within.all()):
            return None
        if self._close:
            target, ids, score = (torch.cat(columns) for columns in zip(*self._close, strict=True))
            equal_before = (score == scores[target]) & (ids < self.pairs[target, 1])
            is_ahead = (score > scores[target]) | equal_before
            self._ahead += torch.bincount(target[is_ahead], minlength=self._ahead.numel())
            self._close = []
        return self._ahead

    def _add(self, tile: Tile, targets: slice) -> None:
        user, item = self.pairs[targets].unbind(dim=1)
        row = user - tile.users.start
        column = item - tile.first_id
        is_here = (column >= 0) & (column < tile.num_items)
        here = is_here.nonzero().flatten()
        self.scores[targets][here] = tile.scores[row[here], column[here]]
        # With one target per user, the usual case (leave-one-out), the rows need no copy.
        plain = row.numel() == tile.scores.shape[0] and bool((row.diff() == 1).all())
        rows = tile.scores if plain else tile.scores[row]
        low = self.low[targets, None]
        high = self.high[targets, None]
        above = self._counts(torch.gt, rows, high)
        close = self._counts(torch.ge, rows, low) - above - is_here.to(above.dtype)
        self._ahead[targets] += above.long()
        # Other items than the target between its bounds are rare, and cost more passes over the scores of their rows.
        which = (close > 0).nonzero().flatten()
        if not which.numel() or self._num_close > MAX_CLOSE:
            return
        between = (rows[which] >= low[which]) & (rows[which] <= high[which])
        number, place = between.nonzero(as_tuple=True)
        target, ids = targets.start + which[number], place + tile.first_id
        if self.is_exact:
            before = ids < self.pairs[target, 1]
            self._ahead += torch.bincount(target[before], minlength=self._ahead.numel())
            return
        self._num_close += target.numel()
        self._close.append((target, ids, rows[which[number], place]))
        if self._num_close > MAX_CLOSE:
            self._close = []

    def _counts(self, compare: Comparison, rows: Tensor, bound: Tensor) -> Tensor:
        """Return how many scores of each row (r, width) compare as true with its bound (r, 1), as floating-point numbers (r,).

        Flags of the dtype of the scores are several times as fast on a CPU as booleans, and their sums are exact.
        """
        if self._flags.numel() < rows.numel():
            self._flags = rows.new_empty(rows.numel())
        flags = self._flags[: rows.numel()].view(rows.shape)
        return compare(rows, bound, out=flags).sum(dim=1)
