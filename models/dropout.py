"""Dropout whose random numbers are cheap on a CPU.

Torch draws one 32-bit number per element, one after another on one thread, which costs more than the matrix products of a
narrow encoder. Here each 64-bit draw decides eight elements, so the probability comes in steps of 1/256; the scale
uses the probability that is really applied, so the expectation is exact. On a GPU torch's own kernel is used.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Zero each element with probability round(256 p) / 256 and scale the rest by 1 / (1 - that); identity in eval."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.threshold = min(255, round(probability * 256))  # 256 would drop everything, and divide by zero

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.threshold / 256, training=True)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return x * keep.to(x.dtype).mul_(256 / (256 - self.threshold))
