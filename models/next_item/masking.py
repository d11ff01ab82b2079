"""Masked items: a learned vector replaces the vectors of some input events, and the bidirectional encoder restores their items.

The method is that of BERT4Rec (Sun et al. 2019, section 3.6, arXiv:1904.06690).

Shapes: N input events, D model width.
"""

import torch
from torch import Tensor, nn


class MaskVector(nn.Module):
    """The learned vector (D,) that replaces masked events, their features included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))

    def forward(self, x_ND: Tensor, masked_N: Tensor) -> Tensor:
        return torch.where(masked_N[:, None], self.vector.to(x_ND.dtype), x_ND)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the vector from `generator` (CPU)."""
        self.vector.copy_(torch.empty(self.vector.shape).normal_(0.0, 0.02, generator=generator))
