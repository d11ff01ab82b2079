"""Exponential moving average of the dense weights (Polyak & Juditsky 1992). It is evaluated, while the raw weights are trained.

Tables are not averaged: averaging every row after every step would cost as much as reading the whole table. All ranks hold the same
dense weights, so the average is identical on all ranks without communication.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sharding.tables.local_shards import table_of


class WeightEma:
    """Averages of a model's dense weights, and the number of their updates.

    After update n (from 0) an average is d times itself plus 1 - d times the weight, with d = min(decay, (1 + n) / (10 + n)). So it
    forgets the initial weights soon, and covers few steps while the weights change fast.
    """

    def __init__(self, sharded_model: nn.Module, tables: Collection[str], decay: float) -> None:
        self.decay = decay
        # A rank without a shard of a table has an empty parameter for it.
        self._weights = {
            name: p for name, p in sharded_model.named_parameters() if p.numel() and table_of(name, tables) is None
        }
        # By the name of the parameter in the model.
        self.values = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.num_updates = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the present weights."""
        n = int(self.num_updates.numpy())  # of the CPU
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.values.values()), list(self._weights.values()), 1.0 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def apply(self) -> None:
        """Overwrite the weights of the model with their averages."""
        torch._foreach_copy_(list(self._weights.values()), list(self.values.values()))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Use the averages as weights of the model while the body runs. Then restore the raw weights, bit for bit."""
        raw = [weight.detach().clone() for weight in self._weights.values()]
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self._weights.values()), raw)
