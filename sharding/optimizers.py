"""One combined optimizer: fused sparse optimizers of the tables and a dense one over what is left.

The invariant: every parameter of the module is covered exactly once, checked when the optimizer is built.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper


class Optimizers:
    """The dense optimizer and the fused ones as one thing to schedule, step, save and load."""

    def __init__(
        self, module: DistributedModelParallel, build_dense: Callable[[Iterable[Tensor]], torch.optim.Optimizer]
    ):
        fused = module.fused_optimizer
        fused_names = set(fused.params)
        # A rank that holds no shard of a table has an empty parameter in its place, which nothing ever updates.
        dense = {name: p for name, p in module.named_parameters() if name not in fused_names and p.numel()}
        self.dense_parameters: list[nn.Parameter] = list(dense.values())
        self.dense = KeyedOptimizerWrapper(dense, lambda parameters: build_dense(parameters))
        self.fused = fused
        self.combined = CombinedOptimizer([fused, self.dense])
        _check_coverage(module, fused_names, set(dense))
        self._base_rates = [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        return [*self.dense.param_groups, *self.fused.param_groups]

    def set_rate_factor(self, factor: float) -> None:
        """Scale every learning rate, dense and fused, to `factor` times its configured value."""
        for group, rate in zip(self._groups(), self._base_rates, strict=True):
            group["lr"] = rate * factor
        # A fused optimizer reads its rate when told, before the backward pass that applies it.
        self.fused.zero_grad()

    def step_dense(self) -> None:
        self.dense.step()
        self.dense.zero_grad(set_to_none=True)

    def materialize_dense_state(self) -> None:
        """Create the dense optimizer's state so that a checkpoint can be loaded into it. Weights change: load them after."""
        for parameter in self.dense_parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.step_dense()


def _check_coverage(module: nn.Module, fused: set[str], dense: set[str]) -> None:
    twice = fused & dense
    every = {name for name, p in module.named_parameters() if p.numel()}
    missing = every - fused - dense
    if twice or missing:
        raise AssertionError(
            f"optimizers must cover each parameter once: twice {sorted(twice)}, never {sorted(missing)}"
        )
