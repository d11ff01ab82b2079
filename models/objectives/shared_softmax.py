"""Cross-entropy over a catalogue that the ranks of a group divide among them (Shoeybi et al. 2019, section 3, for vocabularies).

Each rank holds the vectors of its share of the items, and scores them for the targets of all ranks. The ranks add up what a softmax
needs of the whole catalogue: for each target the largest score, the sum of exponentials, and its own score. So no rank looks up all
items, and no scores are sent.

Shapes: T targets of this rank, S of all ranks of the group, K items of the share, R, I of a tile, D model width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from models.batches.catalogue_share import CatalogueShare, Ranks
from models.objectives.chunked_scores import chunk_elements, exponentials
from models.objectives.known_gradients import with_gradients
from models.objectives.products import add_product, score_product
from models.objectives.softmax import TILE_ROWS


def shared_softmax_cross_entropy(
    user_TD: Tensor,
    item_KD: Tensor,
    target_T: Tensor,
    share: CatalogueShare,
    num_items: int,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the sum of cross-entropies of this rank's targets over the whole catalogue, a scalar. Collective.

    Its sum over ranks is that of `softmax_cross_entropy`. The gradient of the items is that of the targets of all ranks, for this
    rank's share of items; the gradient of the users is that of the whole catalogue, for this rank's users.

    Args:
        user_TD: encoded histories of this rank's targets.
        item_KD: vectors of the items of the share, in the order of their ids.
        target_T: item ids of this rank's targets.
        share: the share, with the number of targets of each rank in its only piece.
        num_items: items of the whole catalogue.
        temperature: divides the scores.
        label_smoothing: see softmax_cross_entropy_reference.
    """
    assert share.ranks is not None
    with torch.no_grad():
        loss, gradients = _loss_and_gradients(
            *(user_TD, item_KD, target_T, share, share.ranks), num_items, temperature, label_smoothing
        )
    return with_gradients(loss, (user_TD, item_KD), gradients)


def _loss_and_gradients(
    user_TD: Tensor,
    item_KD: Tensor,
    target_T: Tensor,
    share: CatalogueShare,
    ranks: Ranks,
    num_items: int,
    temperature: float,
    smoothing: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the loss, and its gradients by users and items. Collective. Arguments are those of `shared_softmax_cross_entropy`.

    The first pass over the tiles finds the terms of each target's softmax. The second one computes the scores again, now with the
    sums over the whole catalogue, and from them the gradients.
    """
    (counts,) = share.counts
    sizes = list(counts)
    user_SD = torch.cat(ranks.gather_sized(user_TD.contiguous(), sizes))
    target_S = torch.cat(ranks.gather_sized(target_T.contiguous(), sizes)) - share.first
    scaled_SD = user_SD / temperature
    tiles = _Tiles(item_KD)
    here_S = (target_S >= 0) & (target_S < item_KD.shape[0])
    at_S = torch.where(here_S, target_S, 0)
    log_total_S, target_score_S, mean_score_S = _terms(tiles, scaled_SD, at_S, here_S, ranks, num_items)

    user_gradient = torch.zeros_like(user_SD)
    item_gradient = torch.zeros_like(item_KD)
    for rows in tiles.rows(user_SD):
        for items in tiles.items():
            weights = exponentials(tiles.scores(scaled_SD[rows], items).sub_(log_total_S[rows, None]))
            if smoothing:
                weights -= smoothing / num_items
            add_product(user_gradient[rows], weights, item_KD[items])
            add_product(item_gradient[items], weights.T, user_SD[rows])
    is_here = here_S.nonzero()[:, 0]
    if item_KD.shape[0]:
        own = at_S[is_here]
        user_gradient.index_add_(0, is_here, item_KD[own], alpha=smoothing - 1.0)
        item_gradient.index_add_(0, own, user_SD[is_here], alpha=smoothing - 1.0)

    begin = sum(sizes[: ranks.rank])
    mine = slice(begin, begin + sizes[ranks.rank])
    loss_T = log_total_S - (1.0 - smoothing) * target_score_S - smoothing * mean_score_S
    user_gradient = _sum_of_own(user_gradient, sizes, ranks).div_(temperature)
    return loss_T[mine].sum(), (user_gradient, item_gradient.div_(temperature))


class _Tiles:
    """Scores of a tile of targets and items at a time, in one buffer."""

    def __init__(self, item_KD: Tensor) -> None:
        self._item_KD = item_KD
        self._num_items = max(1, min(item_KD.shape[0], chunk_elements(item_KD.device) // TILE_ROWS))
        self._buffer = item_KD.new_empty(TILE_ROWS * self._num_items)

    def rows(self, user_SD: Tensor) -> Iterator[slice]:
        return (slice(begin, begin + TILE_ROWS) for begin in range(0, user_SD.shape[0], TILE_ROWS))

    def items(self) -> Iterator[slice]:
        return (slice(begin, begin + self._num_items) for begin in range(0, self._item_KD.shape[0], self._num_items))

    def scores(self, scaled_RD: Tensor, items: slice) -> Tensor:
        """Return the scores of a tile, (R, I). The next tile overwrites them."""
        item_ID = self._item_KD[items]
        out = self._buffer[: scaled_RD.shape[0] * item_ID.shape[0]].view(scaled_RD.shape[0], item_ID.shape[0])
        return score_product(scaled_RD, item_ID.T, out)


def _terms(
    tiles: _Tiles, scaled_SD: Tensor, at_S: Tensor, here_S: Tensor, ranks: Ranks, num_items: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of every target the log of its sum of exponentials, its own score, and the mean score, (S,) each. Collective.

    Args:
        tiles: this rank's items.
        scaled_SD: the encoded histories, divided by the temperature.
        at_S: the place of the target in the share.
        here_S: whether it is in the share.
        ranks: the group.
        num_items: items of the whole catalogue.
    """
    largest_S = scaled_SD.new_full((scaled_SD.shape[0],), float("-inf"))
    total_S, target_score_S, sum_S = (torch.zeros_like(largest_S) for _ in range(3))
    for rows in tiles.rows(scaled_SD):
        for items in tiles.items():
            scores = tiles.scores(scaled_SD[rows], items)
            place = at_S[rows] - items.start
            inside = here_S[rows] & (place >= 0) & (place < scores.shape[1])
            near = scores.gather(1, place.clamp(0, scores.shape[1] - 1)[:, None])[:, 0]
            target_score_S[rows] = torch.where(inside, near, target_score_S[rows])
            sum_S[rows] += scores.sum(dim=1)
            before = largest_S[rows]
            larger = torch.maximum(before, scores.amax(dim=1))
            kept = total_S[rows] * before.sub(larger).exp_()
            total_S[rows] = kept.add_(exponentials(scores.sub_(larger[:, None])).sum(dim=1))
            largest_S[rows] = larger
    everywhere_S = ranks.max(largest_S.clone())
    total_S *= largest_S.sub_(everywhere_S).exp_()
    total_S, target_score_S, sum_S = ranks.sum(torch.stack((total_S, target_score_S, sum_S)))
    return total_S.log_().add_(everywhere_S), target_score_S, sum_S.div_(num_items)


def _sum_of_own(gradient_SD: Tensor, sizes: list[int], ranks: Ranks) -> Tensor:
    """Return the sum over ranks of the gradient of this rank's targets, (T, D). Collective.

    The parts are added in the order of the ranks, so that the sum can be repeated.
    """
    width = gradient_SD.shape[1]
    own = sizes[ranks.rank]
    arrived = ranks.exchange(gradient_SD.reshape(-1), [size * width for size in sizes], [own * width] * len(sizes))
    return arrived.view(len(sizes), own, width).sum(dim=0)
