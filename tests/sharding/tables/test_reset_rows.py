"""Rows reset under every plan equal rows reset by hand in a plain table: in weights, and in what the optimizer does next."""

import pytest
import torch

from sharding.config import TableConfig
from sharding.tables.fused import fused_tables
from sharding.tables.initialize import initial_weights, initialize_tables
from sharding.tables.optimizers import Optimizers, table_optimizer
from sharding.tables.reset_rows import reset_rows
from sharding.world import World
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


def caches_forgotten(world: World) -> int:
    """Return the number of a module's fused tables that forgot their cached rows after a reset."""
    forgotten = []
    _, sharded_model, plan = placed_lookup(world, config_of("row_wise", "sgd"), SEED)
    optimizers = Optimizers(
        sharded_model, lambda p: torch.optim.SGD(p, lr=0.1), {"item": config_of("row_wise", "sgd")}, plan
    )
    for table in fused_tables(sharded_model):
        table.reset_cache_states = lambda: forgotten.append(1)  # type: ignore[method-assign]
    reset_rows(sharded_model, optimizers, "item", torch.tensor([1]), torch.tensor([1]), SEED, 1.0)
    return len(forgotten)


def test_gpus_forget_cached_rows_of_a_table_that_was_reset(rank_pool):
    assert rank_pool.run(1, caches_forgotten) == [1]
