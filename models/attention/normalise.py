"""Normalisation of masked scores to weights over the last axis: softmax, SiLU, identity, sparsemax and entmax.

These are the fast forms, with a backward pass of their own where torch has no cheap one. models/attention/reference.py has the
plain ones. Shapes: any leading axes, K keys last. Invisible keys have weight 0. Rows without visible keys are zeros or harmless
numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models import devices
from models.attention.config import POINTWISE, Normalisation

MAX_ROUNDS = 60  # of Newton's method; it takes 3 to 12
ROUNDING = 8  # a step of at most this many units in the last place of the threshold counts as zero


def normalise(scores: Tensor, visible: Tensor, normalisation: Normalisation, silu_divisor: int) -> Tensor:
    """Return the weights of the scores.

    Args:
        scores: (..., K).
        visible: bool, broadcasts to the scores.
        normalisation: the form.
        silu_divisor: divides pointwise weights.
    """
    if normalisation == "silu":
        return (F.silu(scores) / silu_divisor) * visible
    if normalisation == "none":
        return scores * visible
    # Finite, so that the gradient of a padded row without visible keys is not NaN.
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    match normalisation:
        case "softmax":
            return torch.softmax(scores, dim=-1)
        case "sparsemax":
            return sparsemax(scores)
        case "entmax15":
            return entmax15(scores)


def penalty_of(weights: Tensor, normalisation: Normalisation) -> Tensor:
    """Return the penalty (...,) of weights (..., K): the entropy in nats, or for pointwise weights the sum of absolutes."""
    if normalisation in POINTWISE:
        return weights.abs().sum(dim=-1)
    positive = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    return -(weights * positive.log()).sum(dim=-1)


def sparsemax(scores: Tensor) -> Tensor:
    """Return weights over the last axis, many of them exactly zero."""
    weights: Tensor = _Sparsemax.apply(scores)
    return weights


def entmax15(scores: Tensor) -> Tensor:
    """Return weights over the last axis, some of them exactly zero."""
    weights: Tensor = _Entmax15.apply(scores)
    return weights


class _Sparsemax(torch.autograd.Function):
    """The point of the simplex nearest to the scores: max(0, s_j - t), which sum to one.

    Martins & Astudillo 2016, arXiv:1602.02068, eq. 4 and 9.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor) -> Tensor:
        shifted = scores - scores.amax(dim=-1, keepdim=True)
        weights = _above_threshold(shifted, _sparsemax_step, sparsemax_threshold_by_sorting)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors  # type: ignore[attr-defined]
        support = (weights > 0).to(weights.dtype)
        gradient = grad_outputs[0] * support
        mean = gradient.sum(dim=-1, keepdim=True) / support.sum(dim=-1, keepdim=True)
        result: Tensor = gradient - mean * support
        return result


class _Entmax15(torch.autograd.Function):
    """Entmax with alpha = 1.5, between softmax and sparsemax: max(0, s_j / 2 - t)^2, which sum to one.

    Peters, Niculae & Martins 2019, arXiv:1905.05702, eq. 9.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor) -> Tensor:
        halves = (scores - scores.amax(dim=-1, keepdim=True)).div_(2)
        weights = _above_threshold(halves, _entmax15_step, entmax15_threshold_by_sorting).square_()
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = weights.sqrt()
        gradient = grad_outputs[0] * slope
        mean = gradient.sum(dim=-1, keepdim=True) / slope.sum(dim=-1, keepdim=True)
        result: Tensor = gradient - mean * slope
        return result


def _above_threshold(
    shifted: Tensor, step_of: Callable[[Tensor, Tensor], Tensor], by_sorting: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return max(0, shifted - t) for the threshold t of each row. The largest number of each row is 0, so that -1 <= t < 0.

    On a CPU a sort takes ten times as long as the few rounds of Newton's method. The method starts from below, where the
    weights are too large. The function is convex and decreasing, so no round overshoots its root. On a GPU the rows are sorted,
    since a test for convergence would wait for the device, and so they are in a traced program, which cannot test.
    """
    if not devices.is_host(shifted.device) or torch.compiler.is_exporting():
        return (shifted - by_sorting(shifted)).clamp_(min=0)
    exact = shifted if shifted.dtype == torch.float64 else shifted.float()
    threshold = exact.new_full((*exact.shape[:-1], 1), -1.0)
    above = torch.empty_like(exact)
    scratch = torch.empty_like(exact)
    arrived = ROUNDING * torch.finfo(exact.dtype).eps
    going = torch.ones_like(threshold, dtype=torch.bool)
    for _ in range(MAX_ROUNDS):
        step = step_of(torch.sub(exact, threshold, out=above).clamp_(min=0), scratch)
        # A converged row does not change, so that it does not depend on the number of rounds of other rows.
        threshold += step * going
        going &= step > -arrived * threshold
        if not going.any():
            break
    return torch.sub(exact, threshold, out=above).clamp_(min=0).to(shifted.dtype)


def _sparsemax_step(above: Tensor, scratch: Tensor) -> Tensor:
    """Return a step towards sum above = 1, with the number of entries above the threshold as slope.

    Michelot 1986, https://doi.org/10.1007/BF00938486.
    """
    return above.sum(dim=-1, keepdim=True).sub_(1).div_(torch.sign(above, out=scratch).sum(dim=-1, keepdim=True))


def _entmax15_step(above: Tensor, scratch: Tensor) -> Tensor:
    """Return a step towards |above| = 1, with the slope sum above / |above|.

    The root of the sum of squares is closer to linear than the sum itself.
    """
    norm = torch.square(above, out=scratch).sum(dim=-1, keepdim=True).sqrt_()  # more precise than torch's vector_norm
    return (norm - 1).mul_(norm).div_(above.sum(dim=-1, keepdim=True))


def sparsemax_threshold_by_sorting(shifted: Tensor) -> Tensor:
    """Return the threshold (..., 1) of rows (..., K) with maximum 0 (Martins & Astudillo 2016, algorithm 1)."""
    ordered = shifted.sort(dim=-1, descending=True).values
    count = torch.arange(1, shifted.shape[-1] + 1, dtype=shifted.dtype, device=shifted.device)
    sums = ordered.cumsum(dim=-1)
    size = (1 + count * ordered > sums).sum(dim=-1, keepdim=True)
    return (sums.gather(-1, size - 1) - 1) / size


def entmax15_threshold_by_sorting(halves: Tensor) -> Tensor:
    """Return the threshold (..., 1) of rows (..., K) with maximum 0 (Peters, Niculae & Martins 2019, algorithm 2)."""
    # Numbers more than 1 below the largest have no weight. Clamping them keeps the sums of squares precise.
    ordered = halves.clamp(min=-2.0).sort(dim=-1, descending=True).values
    count = torch.arange(1, halves.shape[-1] + 1, dtype=halves.dtype, device=halves.device)
    mean = ordered.cumsum(dim=-1) / count
    mean_square = ordered.square().cumsum(dim=-1) / count
    spread = (1.0 / count - (mean_square - mean.square())).clamp_(min=0)
    threshold_of = mean - spread.sqrt()
    size = (threshold_of <= ordered).sum(dim=-1, keepdim=True)
    return threshold_of.gather(-1, size - 1)
