"""Cross-entropy over the whole catalogue. Losses are sums over targets, never averages.

The trainer divides the sum by the number of targets of the *global* batch, so that the gradient does not depend on the number
of ranks. Shapes: T targets, C candidates, R, K of them in a tile, D model width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.compiled.softmax import SoftmaxKernels
from models.objectives.chunked_scores import chunk_elements, exponentials, sum_over_scores
from models.objectives.known_gradients import with_gradients
from models.objectives.products import add_product, score_product

MIN_ROWS = 32  # with fewer targets in a chunk, reading all candidates would cost more than the arithmetic
TILE_ROWS = 512


def scale_vectors(vectors: Tensor, normalize: bool) -> Tensor:
    """Divide each row by its Euclidean length if `normalize` is set. Rows of zeros stay zero."""
    return F.normalize(vectors, dim=-1, eps=1e-6) if normalize else vectors


def softmax_cross_entropy_reference(
    user_TD: Tensor, item_CD: Tensor, target_T: Tensor, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """Return sum_t sum_c -y_tc log softmax(user_t . item / temperature)[c], a scalar, holding all T x C logits.

    y_tc = label_smoothing / C, and 1 - label_smoothing more at the target (Szegedy et al. 2016, section 7, arXiv:1512.00567).
    """
    logits_TC = user_TD @ item_CD.T / temperature
    return F.cross_entropy(logits_TC, target_T, reduction="sum", label_smoothing=label_smoothing)


def softmax_cross_entropy(
    user_TD: Tensor,
    item_CD: Tensor,
    target_T: Tensor,
    temperature: float,
    label_smoothing: float = 0.0,
    kernels: SoftmaxKernels | None = None,
) -> Tensor:
    """Return the loss of `softmax_cross_entropy_reference`, equal in value and gradient.

    Memory is O(chunk_elements + T D + C D) instead of O(T C). Up to chunk_elements / MIN_ROWS candidates it costs 6 T C D
    operations: three matrix products. Beyond that even a row of logits is long, so the tiles are computed twice, for 8 T C D.

    kernels: compute what they can; the rest is computed by torch.
    """
    if kernels is not None and kernels.takes(user_TD, item_CD):
        loss = _compiled_cross_entropy(user_TD, item_CD, target_T, temperature, kernels)
    elif item_CD.shape[0] * MIN_ROWS <= chunk_elements(item_CD.device):
        loss = sum_over_scores(user_TD, item_CD, None, lambda scores, rows: _rows(scores, target_T[rows]), temperature)
    else:
        loss = _tiled_cross_entropy(user_TD, item_CD, target_T, temperature)
    if label_smoothing:
        # -sum_c y_c log p_c = log Z - (1 - s) score of the target - s mean score: the smoothing needs no single logits.
        target_score = (user_TD * item_CD.index_select(0, target_T)).sum()
        mean_score = (user_TD.sum(dim=0) * item_CD.mean(dim=0)).sum()
        loss = loss + label_smoothing / temperature * (target_score - mean_score)
    return loss


def _rows(logits: Tensor, target_R: Tensor) -> tuple[Tensor, None]:
    """Return the loss of a chunk of targets from all of their logits. Replaces the logits by softmax - onehot."""
    target_logit = logits.gather(1, target_R[:, None])
    largest = logits.amax(dim=1, keepdim=True)
    weights = exponentials(logits.sub_(largest))
    total = weights.sum(dim=1, keepdim=True)
    loss = (total.log() + largest - target_logit).sum()
    weights.mul_(1.0 / total)
    weights.scatter_add_(1, target_R[:, None], weights.new_full((target_R.numel(), 1), -1.0))
    return loss, None


def _tiled_cross_entropy(user_TD: Tensor, item_CD: Tensor, target_T: Tensor, temperature: float) -> Tensor:
    """Return softmax cross-entropy, and hold the logits of one tile of targets and candidates at a time.

    The first pass over the tiles sums exponentials. The second pass computes the logits again and divides by the sums. The
    targets' own contribution to the gradient is a sum over T, outside of the tiles.
    """
    with torch.no_grad():
        scaled_TD = user_TD / temperature
        target_TD = item_CD.index_select(0, target_T)
        tile_items = max(1, chunk_elements(item_CD.device) // TILE_ROWS)
        user_gradient = target_TD.neg()
        item_gradient = torch.zeros_like(item_CD)
        item_gradient.index_add_(0, target_T, user_TD, alpha=-1.0)
        loss = user_TD.new_zeros(())
        tile = user_TD.new_empty(TILE_ROWS * tile_items)
        of_rows = (t.split(TILE_ROWS) for t in (scaled_TD, user_TD, target_T, user_gradient))
        for scaled_RD, user_RD, target_R, gradient_RD in zip(*of_rows, strict=True):
            log_total_R, target_logit_R = _log_total(scaled_RD, item_CD, target_R, tile, tile_items)
            loss += (log_total_R - target_logit_R).sum()
            for item_KD, gradient_KD in zip(item_CD.split(tile_items), item_gradient.split(tile_items), strict=True):
                weights_RK = _logits(scaled_RD, item_KD, tile).sub_(log_total_R[:, None])
                exponentials(weights_RK)
                add_product(gradient_RD, weights_RK, item_KD)
                add_product(gradient_KD, weights_RK.T, user_RD)
        gradients = user_gradient.div_(temperature), item_gradient.div_(temperature)
    return with_gradients(loss, (user_TD, item_CD), gradients)


def _compiled_cross_entropy(
    user_TD: Tensor, item_CD: Tensor, target_T: Tensor, temperature: float, kernels: SoftmaxKernels
) -> Tensor:
    """Return softmax cross-entropy by the compiled kernels."""
    with torch.no_grad():
        own_T = user_TD.new_empty(user_TD.shape[0])
        terms = kernels.terms(user_TD, item_CD, own_T, temperature, target_T)
        loss = terms.total.sub_(own_T).sum()
    return with_gradients(loss, (user_TD, item_CD), (terms.user_gradient, terms.item_gradient))


def _logits(scaled_RD: Tensor, item_KD: Tensor, tile: Tensor) -> Tensor:
    rows = scaled_RD.shape[0]
    items = item_KD.shape[0]
    return score_product(scaled_RD, item_KD.T, tile[: rows * items].view(rows, items))


def _log_total(
    scaled_RD: Tensor, item_CD: Tensor, target_R: Tensor, tile: Tensor, tile_items: int
) -> tuple[Tensor, Tensor]:
    """Return (log sum_c exp(logit), the target's logit), (R,) each, over one tile of candidates after another.

    The sums are rescaled whenever a larger logit occurs.
    """
    largest_R = scaled_RD.new_full((scaled_RD.shape[0],), float("-inf"))
    total_R = torch.zeros_like(largest_R)
    target_logit_R = torch.zeros_like(largest_R)
    for number, item_KD in enumerate(item_CD.split(tile_items)):
        logits_RK = _logits(scaled_RD, item_KD, tile)
        place_R = target_R - number * tile_items
        here_R = (place_R >= 0) & (place_R < item_KD.shape[0])
        near_R = logits_RK.gather(1, place_R.clamp(0, item_KD.shape[0] - 1)[:, None])[:, 0]
        target_logit_R = torch.where(here_R, near_R, target_logit_R)
        larger_R = torch.maximum(largest_R, logits_RK.amax(dim=1))
        total_R.mul_(largest_R.sub_(larger_R).exp_()).add_(exponentials(logits_RK.sub_(larger_R[:, None])).sum(dim=1))
        largest_R = larger_R
    return total_R.log_().add_(largest_R), target_logit_R
