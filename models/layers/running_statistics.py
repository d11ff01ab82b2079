"""Activations standardised by what earlier batches were like: batch statistics that depend on no other example of the batch.

    standardised(x) = (x - E) / sqrt(V + eps),      E, V: moving averages over global batches, without gradients

Batch normalisation takes E and V from the batch itself, so that an example's output depends on who else is in it, on how many ranks
share it and in how many pieces it is computed. Here they are those of the batches before: while training, each module counts what
goes through it, and once per step the trainer sums these counts over ranks and lets all modules take them in.

The invariant: between two updates the output is a function of an example alone, and what is summed up is the same however the
global batch is cut, padded, or computed again in a backward pass.

Shapes: W width, K width of all modules' sums together.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn


class Modular(Protocol):
    """Whatever is made of modules."""

    def modules(self) -> Iterator[nn.Module]:
        """All of them, itself among them."""


class RunningStatistics(nn.Module):
    """mean, variance: (W,) of each coordinate, 0 and 1 before the first update; num_updates: () int64.

    Update n (from 0) weighs a new batch by max(1 - decay, 1 / (n + 1)): so the first ones are averaged evenly, and what the module
    was initialised with is forgotten at once. The variance is the average of the variances of batches, as in batch normalisation.
    """

    def __init__(self, width: int, decay: float = 0.99, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        # Since the last update: how many there were, sums of (x - mean), sums of their squares. Zero between steps.
        self.register_buffer("sums", torch.zeros(1 + 2 * width, dtype=torch.float64), persistent=False)
        self.mean: Tensor
        self.variance: Tensor
        self.num_updates: Tensor
        self.sums: Tensor

    @property
    def scale(self) -> Tensor:
        """(W,) by which what is centred is multiplied."""
        return (self.variance + self.epsilon).rsqrt()

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """(..., W) standardised, in float32 at least. real: (...) bool, the entries that are no padding; none if all are."""
        scale = self.scale
        standardised = torch.addcmul(-self.mean * scale, x.to(torch.promote_types(x.dtype, scale.dtype)), scale)
        # Inside of a backward pass this is a piece computed again, whose entries are counted already.
        if self.training and torch._C._current_graph_task_id() == -1:
            self._count(standardised.detach(), real, scale)
        return standardised

    @torch.no_grad()
    def _count(self, standardised: Tensor, real: Tensor | None, scale: Tensor) -> None:
        flat = standardised.reshape(-1, standardised.shape[-1])
        # On a GPU the question would wait for the answer.
        if real is None or (real.device.type == "cpu" and real.all()):
            self.sums[0] += flat.shape[0]
        else:
            self.sums[0] += real.sum()
            flat = torch.where(real.reshape(-1, 1), flat, 0.0)
        self.sums[1:] += torch.cat((flat.sum(dim=0) / scale, flat.square().sum(dim=0) / scale.square()))

    @torch.no_grad()
    def update(self, summed: Tensor) -> None:
        """Move the averages by (1 + 2W,) sums of the global batch, and count anew. Without any entry the averages stay."""
        count, first, second = summed.split([1, *(2 * [self.mean.numel()])])
        shift = first / count.clamp(min=1.0)
        variance = (second / count.clamp(min=1.0) - shift.square()).clamp(min=0.0)
        some = (count > 0).to(torch.float64)
        weight = some * (1.0 / (self.num_updates + 1)).double().clamp(min=1.0 - self.decay)
        self.mean += (weight * shift).to(self.mean.dtype)
        self.variance += (weight * (variance - self.variance)).to(self.variance.dtype)
        self.num_updates += (count > 0).squeeze(0)
        self.sums.zero_()


def sums_of(model: Modular) -> Tensor:
    """(K,) float64, what all modules of a model have counted since the last update: to be summed over ranks."""
    found = [module.sums for module in _modules(model)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def update(model: Modular, summed: Tensor) -> None:
    """Let all modules take in (K,) sums over all ranks, as `sums_of` orders them."""
    modules = _modules(model)
    for module, sums in zip(modules, summed.split([module.sums.numel() for module in modules]), strict=True):
        module.update(sums)


def forget(model: Modular) -> None:
    """Drop what was counted since the last update: of a step that is not applied."""
    for module in _modules(model):
        module.sums.zero_()


def _modules(model: Modular) -> list[RunningStatistics]:
    return [module for module in model.modules() if isinstance(module, RunningStatistics)]
