"""Activations that learn or adapt something, of rankers. (..., W) to (..., W), each coordinate on its own.

    relu(s)  = max(s, 0)
    prelu(s) = s where s > 0, else alpha s                                         (He et al. 2015, arXiv:1502.01852, equation 1)
    dice(s)  = p s + (1 - p) alpha s,   p = sigmoid((s - E) / sqrt(V + eps))       (Zhou et al. 2018, arXiv:1706.06978, equation 3)

alpha is learned, one for each coordinate. The paper takes E and V from the batch while training; ours are always moving averages
over earlier global batches (models.moving_statistics), so that no output depends on other examples.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.moving_statistics import MovingStatistics


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
        self.statistics = MovingStatistics(width)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """real: (...) bool, what is no padding and counts for the moving averages; none if all is."""
        gate = torch.sigmoid(self.statistics(x, real))
        activated: Tensor = x * (self.alpha + (1.0 - self.alpha) * gate)
        return activated.to(x.dtype)

    @torch.no_grad()
    def initialize(self) -> None:
        """Set what needs no randomness."""
        self.alpha.zero_()


def activation_of(kind: Literal["relu", "prelu", "dice"], width: int) -> nn.Module:
    """The activation that the settings name."""
    match kind:
        case "relu":
            return Relu()
        case "prelu":
            return PRelu(width)
        case "dice":
            return Dice(width)
