"""The best items of each user, kept up to date tile by tile.

A score that is not above the threshold of its user cannot enter the list. So a tile costs one pass for the largest score of each
group of its columns, and further work for the few groups that reach the threshold. Items are ordered by descending score, and equal
scores by ascending id; tiles come in ascending order of their items.
Shapes: B users, r users and G groups of columns of a tile, C columns of the lists, K items of a list.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sharding.world import World
from trainer.evaluation.next_item.score_tiles import EXCLUDED, GROUPS_OF, Tile

SPARE = 2  # columns for new items, in multiples of those of the list
MIN_SPARE = 128  # at least


@dataclass(frozen=True)
class Best:
    """Lists of the best items, in order."""

    ids: Tensor
    """(B, K)."""
    scores: Tensor
    """(B, K)."""

    def merged(self, other: "Best", top: int) -> "Best":
        """Return the `top` best of both."""
        ids, scores = torch.cat((self.ids, other.ids), dim=1), torch.cat((self.scores, other.scores), dim=1)
        by_id = ids.argsort(dim=1, stable=True)
        ids, scores = ids.gather(1, by_id), scores.gather(1, by_id)
        by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
        return Best(ids.gather(1, by_score), scores.gather(1, by_score))


class TopLists:
    """Growing lists of the best items of B users.

    The columns of a list hold its best items in order, then new items in the order of their ids, then nothing.
    """

    def __init__(self, num_users: int, top: int, like: Tensor) -> None:
        self.top = top
        columns = top + max(SPARE * top, MIN_SPARE)
        self.ids = torch.zeros((num_users, columns), dtype=torch.int64, device=like.device)
        self.scores = like.new_full((num_users, columns), EXCLUDED)
        self.filled = torch.zeros(num_users, dtype=torch.int64, device=like.device)
        # A list has at least K items that are not below this.
        self.threshold = like.new_full((num_users,), EXCLUDED)

    def add(self, tile: Tile) -> None:
        """Put the items of a tile into the lists."""
        if not self.top:
            return
        rows, scores = tile.users, tile.scores
        num_rows, width = scores.shape
        by_group = scores.view(num_rows, GROUPS_OF, width // GROUPS_OF)  # columns far apart: such a reduction is fast
        largest = by_group.amax(dim=1)
        threshold = self.threshold[rows]
        if largest.shape[1] >= self.top and bool((threshold == EXCLUDED).any()):
            # K groups reach the K-th largest of these, hence K items.
            reached = largest.topk(self.top, dim=1, sorted=False).values.amin(dim=1)
            threshold = torch.maximum(threshold, reached)
            # These K items are still to be put into the list, so that a score equal to the threshold is high enough.
            row, column = _entrants(by_group, largest, threshold, torch.ge)
        else:
            row, column = _entrants(by_group, largest, threshold, torch.gt)
        self.threshold[rows] = threshold
        counts = torch.bincount(row, minlength=num_rows)
        if not row.numel():
            return
        if self._is_full(rows, counts):
            self._compact(rows)
        if self._is_full(rows, counts):
            self._merge(rows, _top(scores, tile.first_id, self.top))
            return
        place = torch.arange(row.numel(), device=row.device) - (counts.cumsum(0) - counts)[row] + self.filled[rows][row]
        self.ids[rows][row, place] = column + tile.first_id
        self.scores[rows][row, place] = scores[row, column]
        self.filled[rows] += counts

    def finished(self) -> Best:
        """Return the lists, with id 0 and minus infinity where there are fewer than K items."""
        if self.top:
            self._compact(slice(0, self.ids.shape[0]))
        return Best(self.ids[:, : self.top], self.scores[:, : self.top])

    def _is_full(self, rows: slice, counts: Tensor) -> bool:
        """Return whether some list has too few columns left for as many new items."""
        return int((self.filled[rows] + counts).max()) > self.ids.shape[1]

    def _compact(self, rows: slice) -> None:
        """Sort the lists of some users, cut them to K items, and raise the thresholds to the last of these."""
        # New items follow those of the list, which have smaller ids. So a stable sort keeps equal scores in order.
        scores, order = self.scores[rows].sort(dim=1, descending=True, stable=True)
        self._replace(rows, Best(self.ids[rows].gather(1, order), scores))

    def _merge(self, rows: slice, best: Best) -> None:
        """Merge the best items of a tile into compact lists."""
        self._replace(
            rows, Best(self.ids[rows][:, : self.top], self.scores[rows][:, : self.top]).merged(best, self.top)
        )

    def _replace(self, rows: slice, best: Best) -> None:
        missing = self.top - best.ids.shape[1]
        self.ids[rows][:, : self.top] = F.pad(best.ids, (0, missing))[:, : self.top]
        self.scores[rows][:, : self.top] = F.pad(best.scores, (0, missing), value=EXCLUDED)[:, : self.top]
        self.scores[rows][:, self.top :] = EXCLUDED
        kept = self.scores[rows][:, : self.top] != EXCLUDED
        self.ids[rows][:, : self.top] *= kept
        self.filled[rows] = kept.sum(dim=1)
        self.threshold[rows] = torch.maximum(self.threshold[rows], self.scores[rows][:, self.top - 1])


def _entrants(
    by_group: Tensor, largest: Tensor, threshold: Tensor, compare: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of the scores that compare as high enough, by row and then by column.

    Args:
        by_group: scores (r, GROUPS_OF, G); the columns of a group are G apart.
        largest: (r, G), the largest score of each group.
        threshold: (r,), what finite scores are compared with.
        compare: the comparison of scores and thresholds.
    """
    row, group = compare(largest, threshold[:, None]).nonzero(as_tuple=True)
    scores = by_group.transpose(1, 2)[row, group]
    is_high = compare(scores, threshold[row, None]) & (scores != EXCLUDED)
    number, member = is_high.nonzero(as_tuple=True)
    num_groups, width = by_group.shape[2], by_group.shape[1] * by_group.shape[2]
    place = (row[number] * width + member * num_groups + group[number]).sort().values
    return place // width, place % width


def _top(scores: Tensor, first_id: int, top: int) -> Best:
    """Return the `top` best items of a tile in the order by (score, id)."""
    count = min(top, scores.shape[1])
    values, columns = scores.topk(count, dim=1)
    # topk guarantees no order among equal scores. Where the last place is tied with an item left out, sort the whole row.
    last = values[:, -1:]
    ambiguous = ((scores == last).sum(dim=1) > (values == last).sum(dim=1)).nonzero().flatten()
    if ambiguous.numel():
        order = scores[ambiguous].argsort(dim=1, descending=True, stable=True)[:, :count]
        values[ambiguous], columns[ambiguous] = scores[ambiguous].gather(1, order), order
    nothing = Best(columns[:, :0], values[:, :0])
    return nothing.merged(Best(columns + first_id, values), count)


def over_ranks(best: Best, num_users: list[int], top: int, world: World) -> Best:
    """Return the best items of all workers for the users of this worker. Collective.

    Args:
        best: of this worker's items, for the users of all workers.
        num_users: number of users of each worker.
        top: the length of the lists.
        world: the workers.
    """
    if world.world_size == 1:
        return best
    mine = num_users[world.rank]
    sent, received = [top * size for size in num_users], [top * mine] * world.world_size
    ids = world.exchange(best.ids.reshape(-1), sent, received).view(world.world_size, mine, top)
    scores = world.exchange(best.scores.reshape(-1), sent, received).view(world.world_size, mine, top)
    merged = Best(ids[0], scores[0])
    for number in range(1, world.world_size):
        merged = merged.merged(Best(ids[number], scores[number]), top)
    return merged
