"""Sums over targets of a loss of their scores against candidates, without holding all scores.

Shapes: T targets, C candidates, R targets of a chunk, D model width.

The gradient of such a sum can be computed while a chunk's scores are still in cache: three matrix products and the loss's own
work per score. The backward pass is then a multiplication by the incoming scalar. This module does not depend on the loss.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models import devices
from models.objectives.known_gradients import with_gradients
from models.objectives.products import add_product, product, score_product

LOG2_E = 1.4426950408889634
# Scores held at a time. On a CPU 4 MiB in float32 stay in the last-level cache. On a GPU, launches of such small kernels would
# dominate, so it is 1 GiB there: a million items and 10,000 targets then take about 1,000 launches.
CHUNK_ELEMENTS = 1 << 20
GPU_CHUNK_ELEMENTS = 1 << 28

# (scores (R, C), slice of their targets) -> (sum of the loss over the R targets, its derivative by `own` (R,) or None).
# Scores have the dtype of the vectors and are not rounded below it. The function has to replace them in place by the derivative
# of the sum with respect to them.
RowLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor | None]]


def chunk_elements(device: torch.device) -> int:
    """Return how many scores are held at a time on a device."""
    return CHUNK_ELEMENTS if devices.is_host(device) else GPU_CHUNK_ELEMENTS


def exponentials(scores: Tensor) -> Tensor:
    """Replace each score by its exponential, in place. Powers of 2 take a third of the time on a CPU."""
    return scores.mul_(LOG2_E).exp2_()


def sum_over_scores(
    user_TD: Tensor, item_CD: Tensor, own_T: Tensor | None, row_loss: RowLoss, temperature: float
) -> Tensor:
    """Return the sum of `row_loss` over the scores user . item / temperature, a scalar that can be differentiated once.

    Memory is O(chunk_elements + T D + C D) instead of O(T C).

    Args:
        user_TD: vectors of the targets' histories.
        item_CD: vectors of the candidates.
        own_T: one more number for each target, on which the loss can depend.
        row_loss: the loss of a chunk, see RowLoss.
        temperature: divides the scores.
    """
    with torch.no_grad():
        total, gradients = _total_and_gradients(user_TD, item_CD, own_T, row_loss, temperature)
    inputs = (user_TD, item_CD) if own_T is None else (user_TD, item_CD, own_T)
    return with_gradients(total, inputs, gradients)


def _total_and_gradients(
    user_TD: Tensor, item_CD: Tensor, own_T: Tensor | None, row_loss: RowLoss, temperature: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the sum, and its gradients by users, items and `own_T`, if it is given. Arguments are those of `sum_over_scores`."""
    num_targets = user_TD.shape[0]
    num_candidates = item_CD.shape[0]
    rows = max(1, min(num_targets, chunk_elements(user_TD.device) // max(1, num_candidates)))
    buffer = user_TD.new_empty((rows, num_candidates))
    user_gradient = torch.empty_like(user_TD)
    item_gradient = torch.zeros_like(item_CD)
    own_gradient = [] if own_T is None else [torch.empty_like(own_T)]
    losses = []
    for start in range(0, num_targets, rows):
        chunk = slice(start, min(start + rows, num_targets))
        user_RD = user_TD[chunk]
        scores_RC = buffer[: user_RD.shape[0]]
        score_product(user_RD / temperature, item_CD.T, scores_RC)
        loss, own_derivative = row_loss(scores_RC, chunk)
        losses.append(loss)
        product(scores_RC, item_CD, user_gradient[chunk])
        add_product(item_gradient, scores_RC.T, user_RD)
        if own_derivative is not None:
            own_gradient[0][chunk] = own_derivative
    total = torch.stack(losses).sum() if losses else user_TD.new_zeros(())
    return total, (user_gradient.div_(temperature), item_gradient.div_(temperature), *own_gradient)
