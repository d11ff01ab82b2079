"""Norms of rows. In a group layer norm events and candidates have their own (Han et al. 2025, MTGR, arXiv:2505.18654).

Candidates follow the events in a tensor (N + M, D).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models import devices
from models.compiled.layers import LayerKernels


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


def normed(norm: nn.Module, x: Tensor, num_events: int, kernels: LayerKernels | None = None) -> Tensor:
    """Return the norm of rows, of which the first `num_events` are events and the others candidates.

    Args:
        norm: a layer norm, an RMS norm, or a GroupNorm of two.
        x: the rows, (N + M, D).
        num_events: N.
        kernels: compute what they can; the rest is computed by torch.
    """
    if isinstance(norm, GroupNorm):
        return norm.by_group(x, num_events, lambda own, part: normed(own, part, part.shape[0], kernels))
    compiled = _compiled(norm, x, torch.float32, kernels)
    result: Tensor = norm(x) if compiled is None else compiled[0]
    return result


def normed_for_product(
    norm: nn.Module, x: Tensor, num_events: int, kernels: LayerKernels | None = None
) -> tuple[Tensor, Tensor]:
    """Return the norm of rows, which only matrix products read, and the rows, which what follows reads in place of x.

    The norm may have the dtype of autocast. Arguments are those of `normed`.
    """
    compiled = _compiled(norm, x, torch.bfloat16 if devices.host_uses_bfloat16() else torch.float32, kernels)
    return (normed(norm, x, num_events, kernels), x) if compiled is None else compiled


def _compiled(
    norm: nn.Module, x: Tensor, dtype: torch.dtype, kernels: LayerKernels | None
) -> tuple[Tensor, Tensor] | None:
    """Return what the kernels do (`LayerKernels.normalise`), or None where torch computes."""
    if kernels is None or not kernels.takes(x) or x.dtype != torch.float32:
        return None
    return kernels.normalise(norm, x, dtype) if isinstance(norm, nn.LayerNorm | nn.RMSNorm) else None
