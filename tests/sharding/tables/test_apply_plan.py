"""Sharded equals unsharded: same initial weights under every plan, same weights after several optimizer steps."""

import pytest
import torch

from models.tables import EmbeddingTables, TableSpec
from sharding.config import TableConfig
from sharding.errors import PlacementError
from sharding.plan import Plan, TablePlan
from sharding.tables import initialize
from sharding.tables.apply_plan import shard_tables
from sharding.tables.initialize import initialize_tables
from sharding.tables.optimizers import Optimizers, table_optimizer
from sharding.world import World
from tests.sharding.tables.lookups import Lookup, ids_of, placed_lookup, step_of, whole_table

STEPS = 5


def rate_factor(step: int) -> float:
    return 1.0 - 0.1 * step


def train_sharded(world: World, config: TableConfig) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    module, sharded_model, plan = placed_lookup(world, config, seed=7)
    optimizers = Optimizers(sharded_model, lambda p: torch.optim.SGD(p, lr=0.1), {"item": config}, plan)
    before = whole_table(sharded_model)
    for step in range(STEPS):
        optimizers.set_rate_factor(rate_factor(step))
        step_of(module, optimizers, world, ids_of(step, world.rank, world.world_size))
    return before, whole_table(sharded_model)


def train_unsharded(config: TableConfig) -> tuple[torch.Tensor, torch.Tensor]:
    module = Lookup(torch.device("cpu"))
    initialize_tables(module, 7, {"item": config.init_std})
    before = module.table.detach().clone()
    sparse = table_optimizer([module.table], config)
    dense = torch.optim.SGD(module.dense.parameters(), lr=0.1)
    for step in range(STEPS):
        for optimizer, rate in ((sparse, config.learning_rate), (dense, 0.1)):
            optimizer.param_groups[0]["lr"] = rate * rate_factor(step)
        module(ids_of(step, 0, 1)).backward()
        for optimizer in (sparse, dense):
            optimizer.step()
            optimizer.zero_grad()
    return before, module.table.detach()


@pytest.mark.pairwise
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
        ("data_parallel", "sgd"),
        ("data_parallel", "adagrad"),
        ("data_parallel", "rowwise_adagrad"),
        ("data_parallel", "adam"),
    ],
)
def test_sharded_equals_unsharded(rank_pool, sharding, optimizer, world_size):
    config = TableConfig(dim=8, sharding=sharding, optimizer=optimizer, learning_rate=0.1)
    before, after = rank_pool.run(world_size, train_sharded, config)[0]
    expected_before, expected_after = train_unsharded(config)
    assert torch.equal(before, expected_before)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, expected_after, rtol=1e-5, atol=1e-6)


def place_mixed(world: World) -> None:
    module = torch.nn.Module()
    # A single collection: EmbeddingTables would keep them apart.
    module.tables = EmbeddingTables([TableSpec("item", 37, 8), TableSpec("small", 5, 8)], torch.device("meta"))
    tables = {"item": TableConfig(dim=8), "small": TableConfig(dim=8, sharding="data_parallel")}
    plans = {
        "item": TablePlan("row_wise", "fused", 37, 8),
        "small": TablePlan("data_parallel", "dense", 5, 8),
    }
    shard_tables(module, tables, Plan(1, 1, "cpu", plans), world, seed=1)


def test_a_copied_table_among_sharded_ones_is_refused_by_name(rank_pool):
    with pytest.raises(PlacementError, match=r"tables\.small\.sharding = data_parallel"):
        rank_pool.run(1, place_mixed)


def place_for_others(world: World) -> None:
    plan = Plan(3, 3, "cpu", {"item": TablePlan("row_wise", "fused", 37, 8)})
    shard_tables(Lookup(torch.device("meta")), {"item": TableConfig(dim=8)}, plan, world, seed=1)


def test_a_plan_for_other_ranks_is_refused(rank_pool):
    with pytest.raises(PlacementError, match="the plan is for 3 workers, and there are 2"):
        rank_pool.run(2, place_for_others)


def test_column_split_of_rowwise_state_is_refused_before_any_worker_starts():
    with pytest.raises(ValueError, match="one number per row"):
        TableConfig(sharding="column_wise", optimizer="rowwise_adagrad")


def test_initial_weights_are_standard_normal_times_std():
    module = EmbeddingTables([TableSpec("item", 20000, 16)], torch.device("cpu"))
    initialize_tables(module, 3, {"item": 0.5})
    weights = next(module.parameters()).detach()
    assert abs(weights.mean().item()) < 0.01
    assert abs(weights.std().item() - 0.5) < 0.01
    assert weights.unique().numel() > 0.99 * weights.numel() / 2
    assert abs(((weights / 0.5) ** 4).mean().item() - 3.0) < 0.1  # kurtosis of a normal distribution


@pytest.mark.parametrize("width", [1, 7, 64])
def test_initial_weights_do_not_depend_on_how_many_are_computed_at_a_time(monkeypatch, width):
    module = EmbeddingTables([TableSpec("item", 3001, width)], torch.device("cpu"))
    (weights,) = module.parameters()
    initialize_tables(module, 3, {"item": 0.5})
    expected = weights.detach().clone()
    for at_a_time in (1 << 20, 1000, 5):
        weights.data.zero_()
        monkeypatch.setattr(initialize, "CHUNK_WEIGHTS", at_a_time)
        initialize_tables(module, 3, {"item": 0.5})
        assert torch.equal(weights, expected)


def test_tables_of_one_size_begin_with_different_weights():
    module = EmbeddingTables([TableSpec("item", 50, 8), TableSpec("user", 50, 8)], torch.device("cpu"))
    initialize_tables(module, 3, {"item": 0.5, "user": 0.5})
    items, users = (weights.detach() for weights in module.parameters())
    assert not (items == users).any()


def test_a_plan_cannot_choose_between_two_adams():
    with pytest.raises(ValueError, match='choose sharding = "data_parallel" or leave it out'):
        TableConfig(optimizer="adam", sharding=["data_parallel", "row_wise"])
    assert TableConfig(optimizer="adam", sharding=["table_wise", "row_wise"]).allowed_shardings
    assert TableConfig(optimizer="adagrad", sharding=["data_parallel", "row_wise"]).allowed_shardings
