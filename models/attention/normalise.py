"""From scores to weights: softmax, pointwise SiLU or as they are, sparsemax and entmax, over the last axis of masked scores.

The fast forms, with their own backward where torch has none that is cheap; models/attention/reference.py has the plain ones.
Shapes: any leading axes, K keys last. Invisible keys have weight 0, and rows that see nothing are zeros or harmless numbers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.config import POINTWISE, Normalisation


def normalise(scores: Tensor, visible: Tensor, normalisation: Normalisation, silu_divisor: int) -> Tensor:
    """Weights of the scores. visible: bool, broadcasts to the scores; silu_divisor: what pointwise weights are divided by."""
    if normalisation == "silu":
        return (F.silu(scores) / silu_divisor) * visible
    if normalisation == "none":
        return scores * visible
    # Finite, so that a padded row that sees nothing has no gradient that is not a number.
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    match normalisation:
        case "softmax":
            return torch.softmax(scores, dim=-1)
        case "sparsemax":
            return sparsemax(scores)
        case "entmax15":
            return entmax15(scores)


def penalty_of(weights: Tensor, normalisation: Normalisation) -> Tensor:
    """(...,) for weights (..., K): the entropy in nats, or of pointwise weights the sum of absolute values."""
    if normalisation in POINTWISE:
        return weights.abs().sum(dim=-1)
    positive = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    return -(weights * positive.log()).sum(dim=-1)


def sparsemax(scores: Tensor) -> Tensor:
    """Weights over the last axis, many of them exactly zero."""
    weights: Tensor = _Sparsemax.apply(scores)
    return weights


def entmax15(scores: Tensor) -> Tensor:
    """Weights over the last axis, some of them exactly zero."""
    weights: Tensor = _Entmax15.apply(scores)
    return weights


class _Sparsemax(torch.autograd.Function):
    """The point of the simplex nearest to the scores (Martins & Astudillo 2016, arXiv:1602.02068, algorithm 1, eq. 9)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor) -> Tensor:
        shifted = scores - scores.amax(dim=-1, keepdim=True)
        ordered = shifted.sort(dim=-1, descending=True).values
        count = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
        sums = ordered.cumsum(dim=-1)
        size = (1 + count * ordered > sums).sum(dim=-1, keepdim=True)
        threshold = (sums.gather(-1, size - 1) - 1) / size
        weights = (shifted - threshold).clamp_(min=0)
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
    """Entmax with alpha = 1.5 (Peters, Niculae & Martins 2019, arXiv:1905.05702, algorithm 2): between softmax and sparsemax."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor) -> Tensor:
        halves = (scores - scores.amax(dim=-1, keepdim=True)) / 2
        # Nothing below the largest by more than 1 can have weight; so far off numbers cannot spoil the sums of squares.
        halves = halves.clamp_(min=-2.0)
        ordered = halves.sort(dim=-1, descending=True).values
        count = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
        mean, mean_square = ordered.cumsum(dim=-1) / count, ordered.square().cumsum(dim=-1) / count
        spread = (1.0 / count - (mean_square - mean.square())).clamp_(min=0)
        threshold_of = mean - spread.sqrt()
        size = (threshold_of <= ordered).sum(dim=-1, keepdim=True)
        weights = (halves - threshold_of.gather(-1, size - 1)).clamp_(min=0).square()
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
