"""Updates that are left out on the device: nothing changes, and later updates are those of an optimizer that never saw them."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from sharding.config import TableConfig
from sharding.plan import Plan, TablePlan
from sharding.tables.conditional_updates import can_skip, set_back, step_where
from trainer.optim.lion import Lion

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adagrad with decay": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1),
    "adagrad at a rate beyond all bounds": lambda p: torch.optim.Adagrad(p, lr=1e38, eps=1e-8),
    "rowwise_adagrad": lambda p: RowWiseAdagrad(p, lr=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "lion": lambda p: Lion(p, lr=0.1, weight_decay=0.1),
}


class Trainer:
    """Two weights with an optimizer that has its state."""

    def __init__(self, name: str) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weights = [nn.Parameter(torch.randn(4, 3, generator=generator)), nn.Parameter(torch.zeros(2, 2))]
        self.optimizer = KeyedOptimizerWrapper(
            {str(n): weight for n, weight in enumerate(self.weights)}, lambda p: OPTIMIZERS[name](p)
        )
        self.gradient(None)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer._optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for state in self.optimizer._optimizer.state.values():
            if "step" in state:
                state["step"].zero_()

    def gradient(self, seed: int | None) -> None:
        """Set gradients: those of a seed, or zeros."""
        generator = torch.Generator().manual_seed(seed or 0)
        for weight in self.weights:
            numbers = torch.randn(weight.shape, generator=generator)
            weight.grad = torch.zeros_like(weight) if seed is None else numbers

    def tensors(self) -> list[Tensor]:
        """Return copies of weights and state."""
        states: list[dict[str, Any]] = [self.optimizer._optimizer.state.get(weight, {}) for weight in self.weights]
        slots = [slot for state in states for slot in state.values() if isinstance(slot, Tensor)]
        return [tensor.detach().clone() for tensor in (*self.weights, *slots)]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_left_out_changes_nothing(name: str) -> None:
    plain = Trainer(name)
    conditional = Trainer(name)
    assert equal(conditional.tensors(), plain.tensors())
    for step, applied in enumerate([False, True, False, False, True, True]):
        before = conditional.tensors()
        conditional.gradient(step + 1 if applied else None)
        counters = step_where(conditional.optimizer, torch.tensor(applied))
        if applied:
            plain.gradient(step + 1)
            plain.optimizer.step()
        else:
            set_back(counters)
            assert equal(conditional.tensors(), before)
        assert equal(conditional.tensors(), plain.tensors())
    assert not equal(plain.tensors(), Trainer(name).tensors())


@pytest.mark.parametrize(
    ("settings", "kernel", "skips"),
    [
        ({"optimizer": "sgd"}, "fused", True),
        ({"optimizer": "adagrad"}, "fused", True),
        ({"optimizer": "rowwise_adagrad"}, "fused_uvm_caching", True),
        ({"optimizer": "rowwise_adagrad", "weight_decay": 0.1}, "fused", False),
        ({"optimizer": "adagrad", "learning_rate": 3e38}, "fused", False),
        ({"optimizer": "adam"}, "fused", False),
        ({"optimizer": "partial_rowwise_lamb"}, "fused", False),
        ({"optimizer": "adam", "sharding": "data_parallel"}, "dense", True),
    ],
)
def test_fused_optimizers_with_moments_or_decay_need_the_host(
    settings: dict[str, Any], kernel: Any, skips: bool
) -> None:
    config = TableConfig(**{"dim": 8, **settings})
    plan = Plan(1, 1, "cuda", {"item": TablePlan("table_wise", kernel, 9, 8, (0,))})
    other = TableConfig(dim=8, optimizer="adam")
    assert can_skip({"item": config, "unused": other}, plan) is skips
