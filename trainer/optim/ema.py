"""The exponential moving average of the dense weights (Polyak & Juditsky 1992), which is evaluated while the raw ones are trained.

Tables are not averaged: an average of every row after every step would cost as much as reading the whole table. The average is
of the weights that all ranks hold alike, so it is alike on all ranks without their talking.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sharding.tables.local_shards import table_of


class WeightEma:
    """Averages of a model's dense weights, by the names that the model has for them, and how often they were updated.

    After update n (from 0) an average is d times itself and 1 - d times the weight, d = min(decay, (1 + n) / (10 + n)): so that
    it forgets the initial weights soon, and is short while the weights go far.
    """

    def __init__(self, sharded_model: nn.Module, tables: Collection[str], decay: float) -> None:
        self.decay = decay
        # A rank that holds no shard of a table has an empty parameter in its place.
        self._weights = {
            name: p for name, p in sharded_model.named_parameters() if p.numel() and table_of(name, tables) is None
        }
        self.values = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.num_updates = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are."""
        n = int(self.num_updates)
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.values.values()), list(self._weights.values()), 1.0 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def apply(self) -> None:
        """Make the averages the weights of the model, for good."""
        torch._foreach_copy_(list(self._weights.values()), list(self.values.values()))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model with its averages as weights; afterwards it has the raw ones again, bit for bit."""
        raw = [weight.detach().clone() for weight in self._weights.values()]
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self._weights.values()), raw)
