"""Sharded equals unsharded: same initial weights under every plan, same weights after several optimizer steps."""

import pytest
import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from models.tables import TableSpec, build_tables, lookup_request
from sharding.config import TableConfig
from sharding.errors import PlacementError
from sharding.initialize import initialize_tables
from sharding.optimizers import Optimizers
from sharding.place import place, tables_device
from sharding.ranks import Ranks

SPEC = TableSpec("item", num_rows=37, dim=8)
STEPS = 5


class Lookup(nn.Module):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.tables = build_tables([SPEC], device)
        self.dense = nn.Linear(SPEC.dim, 3)


def ids_of(step: int, rank: int, world_size: int) -> torch.Tensor:
    """Global batch of 24 ids at each step; a rank takes every world_size-th, so shares may be uneven."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, SPEC.num_rows, (25,), generator=generator)[rank::world_size]


def loss_of(rows: torch.Tensor, dense: nn.Linear) -> torch.Tensor:
    return (dense(rows).sigmoid() ** 2).sum()


def full_table(module: nn.Module) -> torch.Tensor | None:
    value = module.state_dict()["tables.embeddings.item.weight"]
    if not isinstance(value, ShardedTensor):
        return value.clone()
    out = torch.zeros(value.size()) if torch.distributed.get_rank() == 0 else None
    value.gather(0, out)
    return out


def train_sharded(ranks: Ranks, config: TableConfig) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    tables = {"item": config}
    module = Lookup(tables_device(tables, ranks.device))
    with torch.no_grad():
        module.dense.weight.fill_(0.1)
        module.dense.bias.zero_()
    placed = place(module, tables, ranks, seed=7).module
    optimizers = Optimizers(placed, lambda p: torch.optim.SGD(p, lr=0.1))
    before = full_table(placed)
    for step in range(STEPS):
        ids = ids_of(step, ranks.rank, ranks.world_size)
        optimizers.set_rate_factor(1.0 - 0.1 * step)
        rows = module.tables(lookup_request({"item": ids}))["item"].values()
        loss_of(rows, module.dense).backward()
        for parameter in optimizers.dense_parameters:
            if parameter.grad is not None:
                ranks.sum(parameter.grad)
        optimizers.step_dense()
    return before, full_table(placed)


def train_unsharded(config: TableConfig) -> tuple[torch.Tensor, torch.Tensor]:
    module = Lookup(torch.device("cpu"))
    with torch.no_grad():
        module.dense.weight.fill_(0.1)
        module.dense.bias.zero_()
    initialize_tables(module, 7, {"item": config.init_std})
    table = list(module.tables.parameters())
    before = table[0].detach().clone()
    match config.optimizer:
        case "sgd":
            sparse: torch.optim.Optimizer = torch.optim.SGD(table, lr=config.learning_rate)
        case "adagrad":
            sparse = torch.optim.Adagrad(table, lr=config.learning_rate, eps=config.eps)
        case "rowwise_adagrad":
            sparse = RowWiseAdagrad(table, lr=config.learning_rate, eps=config.eps)
    if config.sharding == "replicated":
        sparse = torch.optim.SGD(table, lr=0.1)
    dense = torch.optim.SGD(module.dense.parameters(), lr=0.1)
    for step in range(STEPS):
        for group in [*sparse.param_groups, *dense.param_groups]:
            base = config.learning_rate if group in sparse.param_groups and config.sharding != "replicated" else 0.1
            group["lr"] = base * (1.0 - 0.1 * step)
        rows = module.tables(lookup_request({"item": ids_of(step, 0, 1)}))["item"].values()
        loss_of(rows, module.dense).backward()
        for optimizer in (sparse, dense):
            optimizer.step()
            optimizer.zero_grad()
    return before, table[0].detach()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("sharding", "optimizer"),
    [
        ("row_wise", "sgd"),
        ("row_wise", "adagrad"),
        ("row_wise", "rowwise_adagrad"),
        ("table_wise", "rowwise_adagrad"),
        ("table_wise", "adagrad"),
        ("column_wise", "sgd"),
        ("column_wise", "adagrad"),
        ("replicated", "sgd"),
    ],
)
def test_sharded_equals_unsharded(rank_pool, sharding, optimizer, world_size):
    config = TableConfig(dim=8, sharding=sharding, optimizer=optimizer, learning_rate=0.1)
    before, after = rank_pool.run(world_size, train_sharded, config)[0]
    expected_before, expected_after = train_unsharded(config)
    assert torch.equal(before, expected_before)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, expected_after, rtol=1e-5, atol=1e-6)


def place_mixed(ranks: Ranks) -> None:
    tables = {"item": TableConfig(dim=8), "small": TableConfig(dim=8, sharding="replicated")}
    place(Lookup(torch.device("meta")), tables, ranks, seed=1)


def test_mixed_replication_is_refused_by_name(rank_pool):
    with pytest.raises(PlacementError, match=r"tables\.small\.sharding"):
        rank_pool.run(1, place_mixed)


def place_on_too_many(ranks: Ranks) -> None:
    module = nn.Module()
    module.tables = build_tables([TableSpec("item", 6, 8)], torch.device("meta"))
    place(module, {"item": TableConfig(dim=8)}, ranks, seed=1)


def test_a_row_wise_shard_without_rows_is_refused_by_name(rank_pool):
    with pytest.raises(PlacementError, match="6 rows would leave one of 4 workers without any"):
        rank_pool.run(4, place_on_too_many)
    rank_pool.run(3, place_on_too_many)


def test_column_split_of_rowwise_state_is_refused_before_any_worker_starts():
    with pytest.raises(ValueError, match="one accumulator per row"):
        TableConfig(sharding="column_wise", optimizer="rowwise_adagrad")


def test_initial_weights_are_standard_normal_times_std():
    module = build_tables([TableSpec("item", 20000, 16)], torch.device("cpu"))
    initialize_tables(module, 3, {"item": 0.5})
    weights = module.embeddings["item"].weight.detach()
    assert abs(weights.mean().item()) < 0.01
    assert abs(weights.std().item() - 0.5) < 0.01
    assert weights.unique().numel() > 0.99 * weights.numel() / 2
    assert abs(((weights / 0.5) ** 4).mean().item() - 3.0) < 0.1  # kurtosis of a normal distribution
