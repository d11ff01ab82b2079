"""The best items of each user, kept up to date tile by tile.

A score that is not above the threshold of its user cannot enter the list. So a tile costs one pass for the largest score of each
group of its columns, and further work for the few groups that exceed the threshold.

An item and its score are one whole number, the key: a larger key is a larger score, or an equal score and a smaller id. Keys are
distinct, so torch.topk of them is exact.
Shapes: B users, r users and G groups of columns of a tile, m new items of a tile, C columns of the lists, K items of a list.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.item_search.score_tiles import EXCLUDED, GROUPS_OF, Tile

SPARE = 2  # columns for new items, in multiples of those of the list
MIN_SPARE = 128  # at least
CROWDED = 2  # groups above the threshold, in multiples of K, from which a tile raises it
NOTHING = torch.iinfo(torch.int64).min  # the key of no item: smaller than every other
ID_BITS = 32
LARGEST_ID = (1 << ID_BITS) - 1


@dataclass(frozen=True)
class Best:
    """Lists of the best items, in order."""

    ids: Tensor
    """(B, K) int64; 0 where fewer than K items are left."""
    scores: Tensor
    """(B, K) float32; minus infinity where fewer than K items are left."""

    @classmethod
    def of(cls, keys: Tensor) -> "Best":
        """Return the items and scores of keys, (B, K)."""
        is_item = keys != NOTHING
        ids = torch.where(is_item, LARGEST_ID - (keys & LARGEST_ID), 0)
        return cls(ids, torch.where(is_item, _scores_of(keys), EXCLUDED))


class TopLists:
    """Growing lists of the best items of B users.

    The columns of a list hold its best items in order, then new items in any order, then nothing.

    Args:
        num_users: B.
        top: K.
        like: a tensor of the device and dtype (at most 32 bits) of the scores.
    """

    def __init__(self, num_users: int, top: int, like: Tensor) -> None:
        self.top = top
        columns = top + max(SPARE * top, MIN_SPARE) if top else 0
        self.keys = torch.full((num_users, columns), NOTHING, dtype=torch.int64, device=like.device)
        self.filled = torch.zeros(num_users, dtype=torch.int64, device=like.device)
        # No score that is not above this can enter the list.
        self.threshold = like.new_full((num_users,), EXCLUDED)

    def add(self, tile: Tile) -> None:
        """Put the items of a tile into the lists."""
        if not self.top:
            return
        num_rows, width = tile.scores.shape
        by_group = tile.scores.view(
            num_rows, GROUPS_OF, width // GROUPS_OF
        )  # columns far apart: such a reduction is fast
        largest = by_group.amax(dim=1)
        threshold = self.threshold[tile.users]
        can_raise = largest.shape[1] >= self.top
        if can_raise and bool((threshold == EXCLUDED).any()):
            threshold = self._raised(tile.users, largest)
        row, group = (largest > threshold[:, None]).nonzero(as_tuple=True)
        if can_raise and row.numel() > CROWDED * self.top * num_rows:
            threshold = self._raised(tile.users, largest)
            row, group = (largest > threshold[:, None]).nonzero(as_tuple=True)
        if not row.numel():
            return
        scores = by_group.transpose(1, 2)[row, group]
        number, member = (scores > threshold[row, None]).nonzero(as_tuple=True)
        column = member * by_group.shape[2] + group[number]
        self._insert(tile.users, row[number], _keys_of(scores[number, member], column + tile.first_id))

    def _raised(self, users: slice, largest: Tensor) -> Tensor:
        """Raise the thresholds of some users so that at least K items of a tile, or of the list, are above; return them, (r,).

        Args:
            users: r users.
            largest: (r, G) largest score of each group of columns, at least K groups.
        """
        # Of 2 K groups the K-th largest is nearly as large as of many, and is found sooner.
        fold = max(1, largest.shape[1] // (CROWDED * self.top))
        groups = largest.shape[1] // fold
        coarse = largest[:, : fold * groups].view(-1, fold, groups).amax(dim=1) if fold > 1 else largest
        # K groups reach the K-th largest of these, hence K items. They are still to be put into the list, so a score that equals
        # it must be above the threshold.
        reached = coarse.topk(self.top, dim=1, sorted=False).values.amin(dim=1)
        below = reached.nextafter(torch.full_like(reached, EXCLUDED))
        self.threshold[users] = torch.maximum(self.threshold[users], below)
        return self.threshold[users]

    def finished(self) -> Tensor:
        """Return the keys of the lists, (B, K), the best first."""
        self._compact(slice(0, self.keys.shape[0]))
        return self.keys[:, : self.top]

    def _insert(self, users: slice, row: Tensor, keys: Tensor) -> None:
        """Put new items into the lists of some users.

        Args:
            users: r users.
            row: (m,) number of the user of each new item among them, ascending.
            keys: (m,) keys of the new items.
        """
        counts = torch.bincount(row, minlength=users.stop - users.start)
        number = torch.arange(row.numel(), device=row.device) - (counts.cumsum(0) - counts)[row]
        if self._is_full(users, counts):
            self._compact(users)
        if self._is_full(users, counts):
            listed = self.keys[users][:, : self.top]
            both = torch.cat((listed, listed.new_full((listed.shape[0], int(counts.max())), NOTHING)), dim=1)
            both[row, self.top + number] = keys
            self._replace(users, both)
            return
        self.keys[users][row, self.filled[users][row] + number] = keys
        self.filled[users] += counts

    def _is_full(self, users: slice, counts: Tensor) -> bool:
        """Return whether some list has too few columns left for as many new items."""
        return int((self.filled[users] + counts).max()) > self.keys.shape[1]

    def _compact(self, users: slice) -> None:
        """Sort the lists of some users, cut them to K items, and raise the thresholds to the last of these."""
        if not self.top or users.start == users.stop:
            return
        used = max(self.top, int(self.filled[users].max()))
        self._replace(users, self.keys[users][:, :used])

    def _replace(self, users: slice, keys: Tensor) -> None:
        """Make the K largest of some keys the lists of some users."""
        best = keys.topk(self.top, dim=1).values
        lists = self.keys[users]
        lists[:, : self.top] = best
        lists[:, self.top :] = NOTHING
        self.filled[users] = (best != NOTHING).sum(dim=1)
        last = Best.of(best[:, -1:]).scores[:, 0].to(self.threshold.dtype)
        self.threshold[users] = torch.maximum(self.threshold[users], last)


def _keys_of(scores: Tensor, ids: Tensor) -> Tensor:
    """Return keys, (m,) int64.

    Args:
        scores: (m,), of at most 32 bits; larger than minus infinity.
        ids: (m,) int64, below 2^32.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # the sum makes zeros of both signs equal
    return (_ordered(bits).long() << ID_BITS) | (LARGEST_ID - ids)


def _scores_of(keys: Tensor) -> Tensor:
    return _ordered((keys >> ID_BITS).int()).view(torch.float32)


def _ordered(bits: Tensor) -> Tensor:
    """Return integers in the order of the floating-point numbers with these bits, or the bits of such integers."""
    # Negative numbers have the sign bit, and larger other bits the smaller they are.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
