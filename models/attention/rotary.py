"""Rotary positions: queries and keys are rotated by an angle that grows with their place, so that scores depend on distances.

Su et al. 2021 (arXiv:2104.09864), eq. 34, with the two halves of a head paired instead of neighbours.
"""

import math

import torch
from torch import Tensor

BASE = 10000.0


def rotate(x_NHK: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate queries or keys (N, H, K) by the turns of their places; K is even.

    Angles, cosines, sines and the rotation have at least the precision of float32. Only the result is rounded to the dtype of
    the input. So the score of a pair depends on the distance alone, except for that one rounding.
    """
    cos, sin = turns
    first, second = x_NHK.to(cos.dtype).chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_NHK.dtype)


def turns_of(places: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (N, 1, K / 2) of each place's angles, in float32 at least.

    Args:
        places: (N,) int64, of any size.
        width: K.
        dtype: of the queries and keys.
    """
    double = torch.float64
    frequency = BASE ** (-torch.arange(0, width, 2, dtype=double, device=places.device) / width)
    # Whole turns are subtracted in float64: in float32 they would use the digits of the fraction of a turn.
    angle = (places.to(double)[:, None, None] * frequency).remainder_(2.0 * math.pi)
    angle = angle.to(torch.promote_types(dtype, torch.float32))
    return angle.cos(), angle.sin()
