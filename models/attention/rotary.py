"""Rotary positions: queries and keys turned by an angle that grows with their place, so that scores see only distances.

Su et al. 2021 (arXiv:2104.09864), eq. 34, with the two halves of a head paired instead of neighbours.
"""

import torch
from torch import Tensor, nn

BASE = 10000.0


class Rotary(nn.Module):
    """Turns (N, H, K) by the places (N,) int64 of events, however far they reach; K is even."""

    def forward(self, x_NHK: Tensor, places: Tensor) -> Tensor:
        width, double = x_NHK.shape[-1], torch.float64
        frequency = BASE ** (-torch.arange(0, width, 2, dtype=double, device=x_NHK.device) / width)
        angle = (places.to(double)[:, None, None] * frequency).float().to(x_NHK.dtype)
        first, second = x_NHK.chunk(2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
