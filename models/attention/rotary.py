"""Rotary positions: queries and keys turned by an angle that grows with their place, so that scores see only distances.

Su et al. 2021 (arXiv:2104.09864), eq. 34, with the two halves of a head paired instead of neighbours.
"""

import torch
from torch import Tensor, nn

BASE = 10000.0


class Rotary(nn.Module):
    """Turns (N, H, K) by the places (N,) int64 of events; K is even."""

    angles: Tensor

    def __init__(self, head_width: int, max_history: int) -> None:
        super().__init__()
        frequency = BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angles = torch.arange(max_history, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("angles", angles.float(), persistent=False)

    def forward(self, x_NHK: Tensor, places: Tensor) -> Tensor:
        angle = self.angles.index_select(0, places)[:, None].to(x_NHK.dtype)
        first, second = x_NHK.chunk(2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
