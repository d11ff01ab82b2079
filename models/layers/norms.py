"""Group layer norm: events and candidates have norms of their own (Han et al. 2025, MTGR, arXiv:2505.18654).

Candidates follow the events in a tensor (N + M, D).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class GroupNorm(nn.Module):
    """A norm of events and another of candidates, with weights of their own."""

    def __init__(self, events: nn.Module, candidates: nn.Module) -> None:
        super().__init__()
        self.events = events
        self.candidates = candidates

    def forward(self, x: Tensor, num_events: int) -> Tensor:
        return self.by_group(x, num_events, lambda norm, part: norm(part))

    def by_group(self, x: Tensor, num_events: int, apply: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Return the norm of the first `num_events` rows and that of the others, each applied by `apply`."""
        if not num_events:
            return apply(self.candidates, x)
        if num_events == x.shape[0]:
            return apply(self.events, x)
        return torch.cat((apply(self.events, x[:num_events]), apply(self.candidates, x[num_events:])))


def normed(norm: nn.Module, x: Tensor, num_events: int) -> Tensor:
    """Return the norm of rows, of which the first `num_events` are events and the others candidates."""
    result: Tensor = norm(x, num_events) if isinstance(norm, GroupNorm) else norm(x)
    return result
