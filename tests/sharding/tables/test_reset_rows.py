"""Rows reset under every plan equal rows reset by hand in a plain table: in weights, and in what the optimizer does next."""

from unittest import mock

import pytest
import torch

from sharding.config import TableConfig
from sharding.tables.fused import fused_tables
from sharding.tables.initialize import initial_weights, initialize_tables
from sharding.tables.local_shards import local_shards, table_of, table_weights
from sharding.tables.optimizers import Optimizers, table_optimizer
from sharding.tables.reset_rows import reset_rows
from sharding.world import World
from tests.sharding.tables.caches import UNTOUCHED, cache_slots, give_cache
from tests.sharding.tables.lookups import DIM, Lookup, ids_of, placed_lookup, step_of, whole_table

SEED, STEPS = 7, 6
RATE = 0.07  # not 0.1: a first step of Adagrad would take the dense weights to 0, and gradients to rounding noise
EVERY_PLAN = [
    ("row_wise", "sgd"),
    ("row_wise", "adagrad"),
    ("row_wise", "rowwise_adagrad"),
    ("table_wise", "adagrad"),
    ("table_wise", "rowwise_adagrad"),
    ("column_wise", "sgd"),
    ("column_wise", "adagrad"),
    ("data_parallel", "adagrad"),
    ("data_parallel", "rowwise_adagrad"),
    ("data_parallel", "sgd"),
    ("data_parallel", "adam"),
]


def resets(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows to reset before a step, in no order, with the generation that each enters: some once, some again and again."""
    rows = torch.tensor([[36, 5, 20], [], [0, 5], [19, 18, 12, 36], [], [5]][step], dtype=torch.int64)
    earlier = torch.cat([torch.empty(0, dtype=torch.int64), *(resets(s)[0] for s in range(step))])
    return rows, (earlier[None, :] == rows[:, None]).sum(dim=1)


def config_of(sharding: str, optimizer: str) -> TableConfig:
    return TableConfig(dim=DIM, sharding=sharding, optimizer=optimizer, learning_rate=RATE)


def train_sharded(world: World, config: TableConfig) -> list[torch.Tensor | None]:
    """Return the whole table after every reset and after every step, on the first rank."""
    module, sharded_model, plan = placed_lookup(world, config, SEED)
    optimizers = Optimizers(
        sharded_model, lambda parameters: torch.optim.SGD(parameters, lr=RATE), {"item": config}, plan
    )
    seen = []
    for step in range(STEPS):
        reset_rows(sharded_model, optimizers, "item", *resets(step), seed=SEED, std=config.init_std)
        seen.append(whole_table(sharded_model))
        step_of(module, optimizers, world, ids_of(step, world.rank, world.world_size))
        seen.append(whole_table(sharded_model))
    return seen


def train_plain(config: TableConfig) -> list[torch.Tensor]:
    """Return the same with a plain table, a plain optimizer, and resets by hand."""
    module = Lookup(torch.device("cpu"))
    initialize_tables(module, SEED, {"item": config.init_std})
    table = module.table
    first = table.detach().clone()
    sparse = table_optimizer([table], config)
    dense = torch.optim.SGD(module.dense.parameters(), lr=RATE)
    seen = []
    for step in range(STEPS):
        rows, generations = resets(step)
        with torch.no_grad():
            for row, generation in zip(rows.tolist(), generations.tolist(), strict=True):
                one = [torch.tensor([row]), torch.tensor([generation])]
                values = initial_weights(SEED, "item", *one, range(DIM), DIM, config.init_std)
                table[row] = first[row] if generation == 0 else values[0].float()
                for value in sparse.state[table].values():
                    if isinstance(value, torch.Tensor) and value.dim() > 0:
                        value[row] = 0
        seen.append(table.detach().clone())
        module(ids_of(step, 0, 1)).backward()
        for each in (sparse, dense):
            each.step()
            each.zero_grad()
        seen.append(table.detach().clone())
    return seen


@pytest.mark.pairwise
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("sharding", "optimizer"), EVERY_PLAN)
def test_reset_rows_equal_those_of_a_plain_table(rank_pool, sharding, optimizer, world_size):
    config = config_of(sharding, optimizer)
    sharded_model = rank_pool.run(world_size, train_sharded, config)[0]
    plain = train_plain(config)
    # Adam turns the rounding of gradients near zero into full steps; its rows agree less closely.
    tolerance = 1e-3 if optimizer == "adam" else 1e-5
    for step in range(STEPS):
        rows, _ = resets(step)
        assert torch.equal(sharded_model[2 * step][rows], plain[2 * step][rows])
        torch.testing.assert_close(sharded_model[2 * step], plain[2 * step], rtol=tolerance, atol=1e-6)
        torch.testing.assert_close(sharded_model[2 * step + 1], plain[2 * step + 1], rtol=tolerance, atol=1e-6)


def test_every_generation_of_a_row_has_other_weights_like_normal_numbers():
    rows, generations = torch.arange(40).repeat_interleave(500), torch.arange(500).repeat(40)
    weights = initial_weights(3, "item", rows, generations, range(16), 16, 0.5)
    assert weights.unique().numel() > 0.999 * weights.numel()
    assert abs(weights.mean().item()) < 0.01
    assert abs(weights.std().item() - 0.5) < 0.01
    by_row = weights.view(40, 500, 16)
    correlation = torch.corrcoef(by_row[:, :, 0])  # between rows, over generations
    assert (correlation - torch.eye(40)).abs().max() < 0.2


def test_columns_of_a_row_are_those_of_the_whole_row():
    rows, generations = torch.tensor([3, 9]), torch.tensor([0, 4])
    whole = initial_weights(3, "item", rows, generations, range(8), 8, 0.5)
    assert torch.equal(whole[:, 4:], initial_weights(3, "item", rows, generations, range(4, 8), 8, 0.5))


def reset_another_table(world: World) -> None:
    config = TableConfig(dim=DIM, sharding="row_wise")
    _, sharded_model, plan = placed_lookup(world, config, seed=1)
    optimizers = Optimizers(
        sharded_model, lambda parameters: torch.optim.SGD(parameters, lr=0.1), {"item": config}, plan
    )
    reset_rows(sharded_model, optimizers, "user", torch.tensor([1]), torch.tensor([1]), seed=1, std=1.0)


def test_a_table_that_does_not_exist_is_refused(rank_pool):
    with pytest.raises(KeyError, match="no table user"):
        rank_pool.run(1, reset_another_table)


def flushes_of_a_reset(world: World, sharding: str) -> list[str]:
    """Return the calls by which a reset of rows makes fbgemm copy or drop whole caches."""
    calls: list[str] = []
    config = config_of(sharding, "adagrad")
    _, sharded_model, plan = placed_lookup(world, config, SEED)
    optimizers = Optimizers(sharded_model, lambda p: torch.optim.SGD(p, lr=0.1), {"item": config}, plan)
    for table in fused_tables(sharded_model):
        table.flush = lambda: calls.append("flush")  # type: ignore[method-assign]
        table.reset_cache_states = lambda: calls.append("reset_cache_states")  # type: ignore[method-assign]
    sharded_model.state_dict()
    assert "flush" in calls, "TorchRec flushes a cache elsewhere than where this test looks"
    calls.clear()
    reset_rows(sharded_model, optimizers, "item", torch.tensor([1, 30]), torch.tensor([1, 2]), SEED, 1.0)
    return calls


@pytest.mark.parametrize("sharding", ["row_wise", "column_wise"])
def test_a_reset_flushes_no_cache(rank_pool, sharding):
    assert rank_pool.run(2, flushes_of_a_reset, sharding) == [[], []]


def cached_reset(world: World) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reset rows 1, 5 and 30 while a cache holds rows 30, 2 and 5. Return table, cache, and the weights of the plain table."""
    config = config_of("row_wise", "adagrad")
    _, sharded_model, plan = placed_lookup(world, config, SEED)
    optimizers = Optimizers(sharded_model, lambda p: torch.optim.SGD(p, lr=0.1), {"item": config}, plan)
    (table,) = fused_tables(sharded_model)
    cache = give_cache(table, torch.tensor([30, -1, 2, 5]), DIM)
    rows = torch.tensor([1, 5, 30])
    with mock.patch("sharding.tables.cached_rows.slots_of", cache_slots):
        reset_rows(sharded_model, optimizers, "item", rows, torch.tensor([1, 2, 3]), SEED, config.init_std)
    expected = initial_weights(SEED, "item", rows, torch.tensor([1, 2, 3]), range(DIM), DIM, config.init_std).float()
    (weights,) = table_weights(sharded_model, "item").values()  # the state dict would flush the cache, which no CPU can
    (shard,) = local_shards(weights)
    return shard.tensor[rows].detach().clone(), cache, expected


def test_rows_are_reset_in_the_table_and_in_its_cache(rank_pool):
    table, cache, expected = rank_pool.run(1, cached_reset)[0]
    assert torch.equal(table, expected)
    assert torch.equal(cache[3], expected[1])
    assert torch.equal(cache[0], expected[2])
    assert torch.equal(cache[1:3], torch.full((2, DIM), UNTOUCHED))


def weights_and_state(world: World, sharding: str) -> bool:
    """Return whether the weights that are found without the state dict are those of the state dict, in the same memory."""
    _, sharded_model, _ = placed_lookup(world, config_of(sharding, "sgd"), SEED)
    state = {name: value for name, value in sharded_model.state_dict().items() if table_of(name, ("item",))}
    weights = table_weights(sharded_model, "item")
    return state.keys() == weights.keys() and all(
        parts_of(value) == parts_of(weights[name]) for name, value in state.items()
    )


def parts_of(value: torch.Tensor) -> list[tuple[int, torch.Size, int, int]]:
    shards = local_shards(value)
    return [(one.tensor.data_ptr(), one.tensor.shape, one.first_row, one.first_column) for one in shards]


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "column_wise", "data_parallel"])
def test_weights_are_those_of_the_state_dict(rank_pool, sharding):
    assert rank_pool.run(2, weights_and_state, sharding) == [True, True]
