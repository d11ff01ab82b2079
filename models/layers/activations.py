"""Activations that learn or adapt something, of rankers. (..., W) to (..., W), each coordinate on its own.

    relu(s)  = max(s, 0)
    prelu(s) = s where s > 0, else alpha s                                         (He et al. 2015, arXiv:1502.01852, equation 1)
    dice(s)  = p s + (1 - p) alpha s,   p = sigmoid((s - E) / sqrt(V + eps))       (Zhou et al. 2018, arXiv:1706.06978, equation 3)

alpha is learned, one for each coordinate. The paper takes E and V from the batch while training; ours are always moving averages
over earlier global batches (models.layers.running_statistics), so that no output depends on other examples.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.layers.running_statistics import RunningStatistics


class Relu(nn.Module):
    """max(s, 0)."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        return F.relu(x)


class PRelu(nn.Module):
    """alpha starts at 0.25, as in the paper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((width,), 0.25))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        # On a CPU three times as fast as choosing between the two.
        return F.relu(x) - self.alpha * F.relu(-x)

    @torch.no_grad()
    def initialize(self) -> None:
        """Set what needs no randomness."""
        self.alpha.fill_(0.25)


class Dice(nn.Module):
    """alpha starts at 0, as in the authors' code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.statistics = RunningStatistics(width)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """real: (...) bool, what is no padding and counts for the moving averages; none if all is."""
        activated: Tensor = _Dice.apply(x, self.alpha, self.statistics(x.detach(), real), self.statistics.scale)
        return activated.to(x.dtype)

    @torch.no_grad()
    def initialize(self) -> None:
        """Set what needs no randomness."""
        self.alpha.zero_()


class _Dice(torch.autograd.Function):
    """x (..., W) and alpha (W,), given x standardised and the scale (W,) that this took: in as few passes as there can be.

    With p = sigmoid(z), z' = scale:  d/dx = alpha + (1 - alpha) (p + x p (1 - p) scale),  d/dalpha = sum of x (1 - p).
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, alpha: Tensor, standardised: Tensor, scale: Tensor
    ) -> Tensor:
        gate = standardised.sigmoid_()
        ctx.save_for_backward(x, alpha, gate, scale)
        return torch.addcmul(alpha, gate, 1.0 - alpha).mul_(x)

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, gate, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        closed = 1.0 - gate
        of_alpha = torch.mul(gradient, x).mul_(closed).flatten(0, -2).sum(dim=0)
        slope = closed.mul_(x).mul_(scale).add_(1.0).mul_(gate)  # p + x p (1 - p) scale
        of_x = torch.addcmul(alpha, slope, 1.0 - alpha).mul_(gradient)
        return of_x.to(x.dtype), of_alpha, None, None


def activation_of(kind: Literal["relu", "prelu", "dice"], width: int) -> nn.Module:
    """The activation that the settings name."""
    match kind:
        case "relu":
            return Relu()
        case "prelu":
            return PRelu(width)
        case "dice":
            return Dice(width)
