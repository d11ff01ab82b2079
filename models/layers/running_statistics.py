"""Activations standardised by running averages of earlier batches, so that no output depends on other examples of the batch.

    standardised(x) = (x - E) / sqrt(V + eps),      E, V: moving averages over global batches, without gradients

Batch normalisation takes E and V from the batch itself. So an example's output depends on the other examples, on the number of
ranks and on the number of micro-batches. Here E and V come from the batches before. In training each module sums its inputs;
once per step the trainer sums these counts over ranks and all modules apply them.

The invariant: between two updates the output is a function of an example alone, and the sums do not depend on how the global
batch is split, padded, or recomputed in a backward pass.

Shapes: W width, K width of all modules' sums together.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from models import devices


class Modular(Protocol):
    """An object that consists of modules."""

    def modules(self) -> Iterator[nn.Module]:
        """Yield all modules, itself included."""


class RunningStatistics(nn.Module):
    """Running mean and variance of each coordinate, with buffers mean, variance (W,) and num_updates () int64.

    Mean and variance are 0 and 1 before the first update. Update n (from 0) weighs a new batch by max(1 - decay, 1 / (n + 1)):
    so the first batches are averaged evenly, and the initial values are forgotten at once. The variance is the average of the
    variances of batches, as in batch normalisation.
    """

    def __init__(self, width: int, decay: float = 0.99, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.decay = decay
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        # Counts since the last update: number of entries, sums of (x - mean), sums of their squares. Zero between steps.
        self.register_buffer("sums", torch.zeros(1 + 2 * width, dtype=torch.float64), persistent=False)
        self.mean: Tensor
        self.variance: Tensor
        self.num_updates: Tensor
        self.sums: Tensor

    @property
    def scale(self) -> Tensor:
        """Return the factor (W,) of centred inputs."""
        return (self.variance + self.epsilon).rsqrt()

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Return x (..., W) standardised, in float32 at least. `real`: (...) bool, no padding; None: no entry is padding."""
        scale = self.scale
        standardised = torch.addcmul(-self.mean * scale, x.to(torch.promote_types(x.dtype, scale.dtype)), scale)
        # A call during a backward pass is a recomputation. Its entries are already counted.
        if self.training and torch._C._current_graph_task_id() == -1:
            self._count(standardised.detach(), real, scale)
        return standardised

    @torch.no_grad()
    def _count(self, standardised: Tensor, real: Tensor | None, scale: Tensor) -> None:
        flat = standardised.reshape(-1, standardised.shape[-1])
        # On a GPU this check would wait for the device.
        if real is None or (devices.is_host(real.device) and real.all()):
            self.sums[0] += flat.shape[0]
        else:
            self.sums[0] += real.sum()
            flat = torch.where(real.reshape(-1, 1), flat, 0.0)
        self.sums[1:] += torch.cat((flat.sum(dim=0) / scale, flat.square().sum(dim=0) / scale.square()))

    @torch.no_grad()
    def update(self, summed: Tensor) -> None:
        """Update the averages by the (1 + 2W,) sums of the global batch, and reset the counts.

        Sums without any entry leave the averages unchanged.
        """
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
    """Return the (K,) float64 counts of all modules since the last update, to be summed over ranks."""
    sums = [module.sums for module in _modules(model)]
    return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64)


def update(model: Modular, summed: Tensor) -> None:
    """Update all modules by (K,) sums over all ranks, in the order of `sums_of`."""
    modules = _modules(model)
    for module, sums in zip(modules, summed.split([module.sums.numel() for module in modules]), strict=True):
        module.update(sums)


def forget(model: Modular) -> None:
    """Drop the counts since the last update, after a step that is not applied."""
    for module in _modules(model):
        module.sums.zero_()


def statistics_of(model: Modular) -> nn.ModuleList:
    """Return the modules of a model with running statistics, in order. To search them takes longer than to sum them."""
    return nn.ModuleList(_modules(model))


def _modules(model: Modular) -> list[RunningStatistics]:
    return [module for module in model.modules() if isinstance(module, RunningStatistics)]
