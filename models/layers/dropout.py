"""Dropout with cheap random numbers on a CPU.

Torch draws one 32-bit number per element on one thread, which costs more than the matrix products of a narrow encoder. Here
each 64-bit draw decides eight elements, so the probability has steps of 1/256. The scale uses the applied probability, so the
expectation is exact. On a GPU torch's own kernel is used.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import devices

STEPS = 256


def threshold_of(probability: float) -> int:
    """Return how many of 256 equally likely bytes drop an element, 255 at most to avoid a division by zero."""
    return min(STEPS - 1, round(probability * STEPS))


def factor_of(threshold: int) -> float:
    """Return the factor of the elements that are kept: 1 / the probability of being kept."""
    return STEPS / (STEPS - threshold)


def random_bytes(shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
    """Return a random byte of each element, uint8 on the host."""
    number = shape.numel()
    words = torch.empty((number + 7) // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return words.view(torch.uint8)[:number].view(shape)


def drop(x: Tensor, threshold: int, generator: torch.Generator | None = None) -> Tensor:
    """Zero each element with probability threshold / 256, and divide the rest by the probability of being kept."""
    if threshold == 0:
        return x
    if not devices.is_host(x.device):
        keep = torch.rand(x.shape, device=x.device, generator=generator) >= threshold / STEPS
    else:
        keep = random_bytes(x.shape, generator) >= threshold
    return x * keep.to(x.dtype).mul_(factor_of(threshold))


class Dropout(nn.Module):
    """Zero each element with probability round(256 p) / 256 and scale the rest by 1 / (1 - that); identity in eval."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.threshold = threshold_of(probability)

    @property
    def active_threshold(self) -> int:
        """Return how many of 256 bytes drop an element now: none outside training."""
        return self.threshold if self.training else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.active_threshold == 0:
            return x
        if not devices.is_host(x.device):
            return F.dropout(x, self.threshold / STEPS, training=True)
        return drop(x, self.threshold)
