"""Embedding tables of an exported program: plain look-ups, in float32 or with rows of 8-bit integers.

An 8-bit row keeps the scale and the offset that map its smallest number to 0 and its largest to 255. So each number is off by half
a step at most: 1/510 of the range of its row. A row of W numbers takes W + 8 bytes instead of 4 W.

Shapes: R rows, W width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "int8"]


class FloatTable(nn.Module):
    """A table in float32."""

    def __init__(self, weight_RW: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight_RW.detach().float().contiguous())
        self.weight: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows of a table, (..., W) float32, by their numbers (...) int64."""
        return nn.functional.embedding(rows, self.weight)


class Int8Table(nn.Module):
    """A table of 8-bit rows."""

    def __init__(self, weight_RW: Tensor) -> None:
        super().__init__()
        codes, scale, offset = quantise(weight_RW)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.codes: Tensor
        self.scale: Tensor
        self.offset: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows of a table, (..., W) float32, by their numbers (...) int64."""
        return dequantise(self.codes[rows], self.scale[rows], self.offset[rows])


def table_of(weight_RW: Tensor, precision: Precision) -> nn.Module:
    """Build the table of a precision."""
    return FloatTable(weight_RW) if precision == "float32" else Int8Table(weight_RW)


def quantise(weight_RW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows as 8-bit integers: codes (R, W) uint8, scale (R, 1) and offset (R, 1) float32."""
    weight_RW = weight_RW.detach().float()
    if not weight_RW.numel():
        nothing = weight_RW.new_zeros((weight_RW.shape[0], 1))
        return weight_RW.to(torch.uint8), nothing, nothing
    offset = weight_RW.amin(dim=1, keepdim=True)
    scale = (weight_RW.amax(dim=1, keepdim=True) - offset) / 255.0
    steps = (weight_RW - offset) / torch.where(scale > 0, scale, 1.0)
    return steps.round_().clamp_(0, 255).to(torch.uint8), scale, offset


def dequantise(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return the numbers of 8-bit rows in float32."""
    return codes.float() * scale + offset
