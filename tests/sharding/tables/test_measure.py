"""Measuring a placed model changes nothing in it, and times every phase of every table on every rank."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from models.tables import EmbeddingTables, TableSpec
from sharding.config import TableConfig
from sharding.plan import Plan, TablePlan
from sharding.planning.costs import PHASES
from sharding.planning.measured import Measured
from sharding.tables.apply_plan import shard_tables
from sharding.tables.measure import measure_tables
from sharding.tables.optimizers import Optimizers
from sharding.world import World

ROWS = {"item": 400, "brand": 30, "genre": 6}
TABLES = {
    "item": TableConfig(dim=8, sharding="row_wise", optimizer="rowwise_adagrad"),
    "brand": TableConfig(dim=8, sharding="table_wise", optimizer="adagrad"),
    "genre": TableConfig(dim=16, sharding="data_parallel", optimizer="sgd"),
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        specs = [TableSpec(n, ROWS[n], c.dim, c.sharding == "data_parallel") for n, c in TABLES.items()]
        self.tables = EmbeddingTables(specs, torch.device("meta"))
        self.dense = nn.Linear(1, 1)


def plan_for(world_size: int) -> Plan:
    tables = {
        "item": TablePlan("row_wise", "fused", 400, 8),
        "brand": TablePlan("table_wise", "fused", 30, 8, (world_size - 1,)),
        "genre": TablePlan("data_parallel", "dense", 6, 16),
    }
    return Plan(world_size, world_size, "cpu", tables)


def copies(state: dict[str, object]) -> list[torch.Tensor]:
    result = []
    for value in state.values():
        shards = [s.tensor for s in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
        result += [shard.detach().clone() for shard in shards]  # type: ignore[attr-defined]
    return result


def measure(world: World) -> tuple[Measured, bool, list[int]]:
    torch.set_num_threads(1)
    model = Model()
    plan = plan_for(world.world_size)
    sharded_model = shard_tables(model, TABLES, plan, world, seed=3)
    optimizers = Optimizers(sharded_model, lambda p: torch.optim.SGD(p, lr=0.1), TABLES, plan)
    rows = {"item": torch.arange(10), "brand": torch.arange(3), "genre": torch.arange(2)}
    result = model.tables(rows)
    torch.autograd.backward(list(result.values()), [torch.ones_like(t) for t in result.values()])
    states = optimizers.combined.state_dict()["state"]
    before = [*copies(sharded_model.state_dict()), *(t for slots in states.values() for t in copies(slots))]
    asked = {"item": [0, 40, 400], "brand": [3, 30, 90], "genre": [6]}
    measured = measure_tables(sharded_model, optimizers, TABLES, asked, world, repeats=1)
    states = optimizers.combined.state_dict()["state"]
    after = [*copies(sharded_model.state_dict()), *(t for slots in states.values() for t in copies(slots))]
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    again = model.tables(rows)  # the order of keys that the collections remember is still the model's
    agree = all(torch.isfinite(t).all() and t.shape == result[n].shape for n, t in again.items())
    return measured, same and agree, [len(before)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_phase_is_timed_and_nothing_changes(rank_pool, world_size):
    for measured, unchanged, (num_tensors,) in rank_pool.run(world_size, measure):
        assert unchanged
        assert num_tensors >= 5
        assert measured.num_ids == {"item": [0, 40, 400], "brand": [3, 30, 90], "genre": [6]}
        for table in ("item", "brand"):
            assert tuple(measured.seconds[table]) == PHASES
            for seconds in measured.seconds[table].values():
                assert seconds.shape == (3, world_size)
                assert (seconds > 0).all()
        assert tuple(measured.seconds["genre"]) == ("lookup",)


@pytest.mark.parametrize("world_size", [1, 2])
def test_memory_is_that_of_weights_and_optimizer_state(rank_pool, world_size):
    measured = rank_pool.run(world_size, measure)[0][0]
    # row_wise with one float32 of state per row; table_wise with Adagrad's table of state, on the last rank; a copy on each.
    np.testing.assert_array_equal(measured.memory_bytes["item"], np.full(world_size, 400 * (8 + 1) * 4 / world_size))
    expected = np.zeros(world_size)
    expected[-1] = 30 * 8 * 2 * 4
    np.testing.assert_array_equal(measured.memory_bytes["brand"], expected)
    np.testing.assert_array_equal(measured.memory_bytes["genre"], np.full(world_size, 6 * 16 * 4))
