"""Masked items: at some input events a learned vector stands in the place of all that is known of the event (Sun et al. 2019,
BERT4Rec, section 3.6, arXiv:1904.06690), and the encoder, which sees both sides of it, restores the item.

Shapes: N input events, D model width.
"""

import torch
from torch import Tensor, nn


class MaskVector(nn.Module):
    """Puts the learned vector (D,) where events are masked: nothing of a masked event is left, its features included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))

    def forward(self, x_ND: Tensor, masked_N: Tensor) -> Tensor:
        return torch.where(masked_N[:, None], self.vector.to(x_ND.dtype), x_ND)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the vector from `generator` (CPU)."""
        self.vector.copy_(torch.empty(self.vector.shape).normal_(0.0, 0.02, generator=generator))
