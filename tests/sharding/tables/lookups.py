"""A module of one table and a dense layer, its plan, and its use, for tests of what is placed."""

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from models.tables import EmbeddingTables, TableSpec
from sharding.config import TableConfig
from sharding.plan import Plan, TablePlan
from sharding.tables.apply_plan import shard_tables
from sharding.tables.optimizers import Optimizers
from sharding.world import World

NUM_ROWS, DIM = 37, 8


class Lookup(nn.Module):
    """One table, "item", and a dense layer on its rows."""

    def __init__(self, device: torch.device, replicated: bool = False) -> None:
        super().__init__()
        self.tables = EmbeddingTables([TableSpec("item", NUM_ROWS, DIM, replicated)], device)
        self.dense = nn.Linear(DIM, 3)
        with torch.no_grad():
            self.dense.weight.fill_(0.1)
            self.dense.bias.zero_()

    def forward(self, ids: Tensor) -> Tensor:
        loss: Tensor = (self.dense(self.tables({"item": ids})["item"]).sigmoid() ** 2).sum()
        return loss

    @property
    def table(self) -> nn.Parameter:
        """The whole table, before it is placed."""
        return next(self.tables.parameters())


def ids_of(step: int, rank: int, world_size: int) -> Tensor:
    """Return a global batch of 25 ids at each step; a rank takes every world_size-th, so shares are uneven."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, NUM_ROWS, (25,), generator=generator)[rank::world_size]


def plan_for(config: TableConfig, world_size: int) -> Plan:
    """Return the one plan that the config's sharding allows, on one host."""
    assert isinstance(config.sharding, str)
    kernel = ("dense" if config.sharding == "data_parallel" else "fused") if config.kernel == "auto" else config.kernel
    places = {
        "table_wise": (world_size - 1,),
        "column_wise": tuple(range(min(world_size, config.dim // 4))),
    }
    table = TablePlan(config.sharding, kernel, NUM_ROWS, config.dim, places.get(config.sharding, ()))  # type: ignore[arg-type]
    return Plan(world_size, world_size, "cpu", {"item": table})


def placed_lookup(world: World, config: TableConfig, seed: int) -> tuple[Lookup, nn.Module, Plan]:
    """Return the module, its placed wrapper, and the plan."""
    plan = plan_for(config, world.world_size)
    module = Lookup(torch.device("meta"), config.sharding == "data_parallel")
    return module, shard_tables(module, {"item": config}, plan, world, seed), plan


def step_of(module: Lookup, optimizers: Optimizers, world: World, ids: Tensor) -> None:
    """Train on this rank's ids."""
    module(ids).backward()
    for parameter in (*optimizers.dense_parameters, *optimizers.copied_parameters):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        world.sum(parameter.grad)
    optimizers.step_dense()


def whole_table(sharded_model: nn.Module) -> Tensor | None:
    """Return the whole table on the first rank, None on others. Collective."""
    (value,) = (value for name, value in sharded_model.state_dict().items() if name.endswith("item.weight"))
    if not isinstance(value, ShardedTensor):
        return torch.as_tensor(value).detach().clone()
    out = torch.zeros(value.size()) if torch.distributed.get_rank() == 0 else None
    value.gather(0, out)
    return out
