"""Rotary positions: queries and keys turned by an angle that grows with their place, so that scores see only distances.

Su et al. 2021 (arXiv:2104.09864), eq. 34, with the two halves of a head paired instead of neighbours.
"""

import math

import torch
from torch import Tensor, nn

BASE = 10000.0


class Rotary(nn.Module):
    """Turns (N, H, K) by the places (N,) int64 of events, however far they reach; K is even.

    Angles, cosines and sines have the precision of float32 at least, and so has the turn: only its result is rounded to the
    dtype of the input. So the score of a pair depends on the distance alone, but for that one rounding.
    """

    def forward(self, x_NHK: Tensor, places: Tensor) -> Tensor:
        exact = torch.promote_types(x_NHK.dtype, torch.float32)
        cos, sin = _turns(places, x_NHK.shape[-1], exact)
        first, second = x_NHK.to(exact).chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x_NHK.dtype)


def _turns(places: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, 1, K / 2) of each place's angles."""
    double = torch.float64
    frequency = BASE ** (-torch.arange(0, width, 2, dtype=double, device=places.device) / width)
    # Whole turns are dropped in float64: they would take the digits that float32 has for the fraction of a turn.
    angle = (places.to(double)[:, None, None] * frequency).remainder_(2.0 * math.pi).to(dtype)
    return angle.cos(), angle.sin()
