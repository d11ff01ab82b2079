"""On one GPU: every kernel and optimizer equals a plain optimizer that moves the rows that were looked up, and no others."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sharding.config import Kernel, Sharding, SparseOptimizer, TableConfig
from sharding.support import unsupported_reason
from sharding.tables.optimizers import table_optimizer
from sharding.world import World, current_world
from tests.sharding.tables.parity import Combination, kernel_of, train_sharded, train_whole

pytestmark = pytest.mark.gpu

KERNELS: tuple[Kernel, ...] = ("fused", "fused_uvm", "fused_uvm_caching")
WORKING = [
    Combination(pooled, sharding, sharding, optimizer, kernel=kernel)
    for pooled, sharding, kernel, optimizer in product(
        (False, True), get_args(Sharding), KERNELS, get_args(SparseOptimizer)
    )
    if (kernel == "fused" or sharding == "row_wise")
    and unsupported_reason(sharding, kernel if kernel_of(sharding) == "fused" else "dense", optimizer, pooled, "cuda")
    is None
]


class TouchedAdam(torch.optim.Optimizer):
    """Adam of Kingma & Ba (2015, arXiv:1412.6980) for the rows that have a gradient, as fbgemm's are.

    partial: one second moment per row, the mean over its columns; trust: steps of a row are as long as the row times the rate
    (LAMB of You et al. 2020, arXiv:1904.00962, by row).
    """

    def __init__(self, parameters: list[Tensor], config: TableConfig) -> None:
        super().__init__(parameters, {"lr": config.learning_rate})
        self.eps = config.eps
        self.partial = config.optimizer.startswith("partial_rowwise")
        self.trust = config.optimizer.endswith("lamb")
        self.num_steps = 0
        (self.weight,) = parameters
        self.first = torch.zeros_like(self.weight)
        self.second = torch.zeros_like(self.weight[:, :1] if self.partial else self.weight)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        gradient = self.weight.grad
        assert gradient is not None
        self.num_steps += 1
        rows = gradient.abs().sum(dim=1) > 0
        square = gradient[rows].square()
        self.first[rows] = 0.9 * self.first[rows] + 0.1 * gradient[rows]
        self.second[rows] = 0.999 * self.second[rows] + 0.001 * (
            square.mean(1, keepdim=True) if self.partial else square
        )
        first = self.first[rows] / (1 - 0.9**self.num_steps)
        second = self.second[rows] / (1 - 0.999**self.num_steps)
        move = first / (second.sqrt() + self.eps)
        if self.trust:
            move *= self.weight[rows].norm(dim=1, keepdim=True) / move.norm(dim=1, keepdim=True)
        self.weight[rows] -= self.param_groups[0]["lr"] * move


def plain_optimizer(parameters: list[Tensor], config: TableConfig) -> torch.optim.Optimizer:
    if config.optimizer in ("sgd", "adagrad", "rowwise_adagrad"):
        return table_optimizer(parameters, config)
    return TouchedAdam(parameters, config)


def name_of(combination: Combination) -> str:
    kind = "pooled" if combination.pooled else "sequence"
    return f"{kind} {combination.wide} {combination.kernel} {combination.optimizer}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    store: Path = tmp_path_factory.mktemp("ranks") / "store"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{store}", rank=0, world_size=1)
    yield current_world(torch.device("cuda:0"))
    dist.destroy_process_group()


@pytest.mark.parametrize("combination", WORKING, ids=name_of)
def test_on_a_gpu_sharded_equals_unsharded(world: World, combination: Combination) -> None:
    sharded_model: dict[Combination, Any] = train_sharded(world, [combination], 1)
    before, after = sharded_model[combination]
    copied_adam = combination.optimizer == "adam" and combination.wide == "data_parallel"
    whole_before, whole_after = train_whole(combination, table_optimizer if copied_adam else plain_optimizer)
    tolerance = 1e-5 if combination.optimizer in ("sgd", "adagrad", "rowwise_adagrad") else 1e-4
    for table in after:
        assert torch.equal(before[table], whole_before[table])
        assert not torch.equal(after[table], before[table])
        torch.testing.assert_close(after[table], whole_after[table], rtol=tolerance, atol=3e-6)
