"""Sharded equals unsharded, for every way of holding a table that works here; every other way is refused by name.

sharding x kernel x optimizer x world size, for tables that are pooled and that are looked up per event: same initial weights,
and the same weights after several steps at falling rates. With four ranks there are two hosts. `make test` runs a pairwise sample
of the combinations, `make test-all` runs all of them.
"""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch

from sharding.config import Kernel, Sharding, SparseOptimizer
from sharding.errors import PlacementError
from sharding.planning.load import TableLoad
from sharding.planning.planner import make_plan
from sharding.planning.topology import GIB, Topology
from sharding.support import unsupported_reason
from sharding.tables.apply_plan import shard_tables
from sharding.world import World
from tests.sharding.tables.parity import Combination, Model, kernel_of, train_sharded, train_whole
from tests.support.sampling import selected

WORLDS = {1: 1, 2: 2, 4: 2}  # ranks: ranks on each host
EVERY = list(product((False, True), get_args(Sharding), get_args(Kernel), get_args(SparseOptimizer)))
WORKING = [
    Combination(pooled, sharding, sharding, optimizer)
    for pooled, sharding, kernel, optimizer in EVERY
    if kernel == kernel_of(sharding) and unsupported_reason(sharding, kernel, optimizer, pooled, "cpu") is None
]
MIXED = [
    Combination(False, "row_wise", "table_wise", "rowwise_adagrad"),
    Combination(False, "column_wise", "row_wise", "adagrad"),
    Combination(True, "row_wise", "data_parallel", "rowwise_adagrad"),
    Combination(True, "table_row_wise", "column_wise", "adagrad"),
    Combination(True, "table_row_wise", "row_wise", "rowwise_adagrad"),
    Combination(True, "grid_shard", "table_column_wise", "sgd"),
]
DECAYING = [
    Combination(False, "row_wise", "row_wise", "rowwise_adagrad", 0.3),
    Combination(False, "table_wise", "row_wise", "rowwise_adagrad", 0.3),
]
REFUSED = {
    r"tables\.thin\.sharding = row_wise: bags that are averaged": Combination(True, "table_wise", "row_wise", "sgd"),
    r"tables\.thin: sharding = grid_shard: gives wrong means": Combination(
        True, "grid_shard", "grid_shard", "sgd", mean=True
    ),
    r"tables\.wide: weight_decay with optimizer = rowwise_adagrad": Combination(
        True, "row_wise", "row_wise", "rowwise_adagrad", 0.3
    ),
    r"tables\.wide: weight_decay with optimizer = adagrad": Combination(False, "row_wise", "row_wise", "adagrad", 0.3),
}
COMBINATIONS = [*WORKING, *MIXED, *DECAYING]


def name_of(combination: Combination) -> str:
    kind = "pooled" if combination.pooled else "sequence"
    decay = " decay" if combination.weight_decay else ""
    return f"{kind} {combination.wide} {combination.thin} {combination.optimizer}{decay}"


@pytest.fixture(scope="module")
def sharded_model(request, rank_pool):
    """Return the tables (before, after) of the selected cases, by world size and combination."""
    cases = selected(request, "test_sharded_equals_unsharded", "world_size", "combination")
    return {
        world_size: rank_pool.run(world_size, train_sharded, combinations, WORLDS[world_size], deadline=180.0)[0]
        for world_size, combinations in cases.items()
    }


@pytest.mark.pairwise
@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("combination", COMBINATIONS, ids=name_of)
def test_sharded_equals_unsharded(sharded_model, combination, world_size):
    before, after = sharded_model[world_size][combination]
    whole_before, whole_after = train_whole(combination)
    assert after.keys() == {"wide", "thin"}
    for table in after:
        assert torch.equal(before[table], whole_before[table])
        assert not torch.equal(after[table], before[table])
        # Adam turns the rounding of gradients near zero into full steps.
        tolerance = 1e-4 if combination.optimizer == "adam" else 1e-5
        torch.testing.assert_close(after[table], whole_after[table], rtol=tolerance, atol=3e-6)


@pytest.mark.parametrize("said", REFUSED)
def test_plans_that_torchrec_computes_wrongly_are_refused_by_name(rank_pool, said):
    with pytest.raises(PlacementError, match=said):
        rank_pool.run(1, train_sharded, [REFUSED[said]], 1)


def place_on_other_hosts(world: World, sharding: Sharding, device: str) -> None:
    combination = Combination(True, sharding, sharding, "sgd")
    plan = combination.plan(4, 1, device)
    shard_tables(Model(combination, torch.device("meta")), combination.tables, plan, world, seed=1)


@pytest.mark.parametrize(
    ("sharding", "device"), [("table_row_wise", "cpu"), ("grid_shard", "cpu"), ("row_wise", "cuda")]
)
def test_hosts_of_another_size_than_planned_are_refused_by_name(rank_pool, sharding, device):
    """On GPUs for any table: a rank's GPU is numbered within its host."""
    message = (
        rf"tables\.wide\.sharding = {sharding}: planned for 1 workers on each host, and there are \d+; set plan.devices"
    )
    with pytest.raises(PlacementError, match=message):
        rank_pool.run(4, place_on_other_hosts, sharding, device)


def place_in_groups(world: World) -> None:
    combination = Combination(False, "row_wise", "row_wise", "sgd")
    plan = replace(combination.plan(2, 2), replica_groups=2)
    shard_tables(Model(combination, torch.device("meta")), combination.tables, plan, world, seed=1)


def test_groups_that_each_hold_all_tables_are_refused_by_name(rank_pool):
    with pytest.raises(PlacementError, match=r"plan\.replica_groups: .* not trained yet; set plan\.replica_groups = 1"):
        rank_pool.run(2, place_in_groups)


def test_the_matrix_holds_what_it_should():
    """What is known to work on a CPU, written down: a change of support.py alone cannot empty the test above."""
    actual = {(c.pooled, c.wide, c.optimizer) for c in WORKING}
    any_optimizer, by_columns = ("sgd", "adagrad", "rowwise_adagrad"), ("sgd", "adagrad")
    expected = {(pooled, "data_parallel", o) for pooled in (False, True) for o in (*any_optimizer, "adam")}
    expected |= {(pooled, s, o) for pooled in (False, True) for s in ("table_wise", "row_wise") for o in any_optimizer}
    expected |= {(pooled, "column_wise", o) for pooled in (False, True) for o in by_columns}
    expected |= {(True, "table_row_wise", o) for o in any_optimizer}
    expected |= {(True, s, o) for s in ("table_column_wise", "grid_shard") for o in by_columns}
    assert actual == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("pooled", "sharding", "kernel", "optimizer"), EVERY)
def test_every_other_way_is_refused_before_any_worker_starts(pooled, sharding, kernel, optimizer, device):
    topology = Topology(device, 4, 2, 8 * GIB, host_memory=64 * GIB)
    load = TableLoad("wide", 64, 16, pooled, 10.0, 10.0, optimizer, (sharding,), kernel, min_partition=4)
    reason = unsupported_reason(sharding, kernel, optimizer, pooled, device)
    if reason is None:
        table = make_plan([load], topology).tables["wide"]
        assert (table.sharding, table.kernel) == (sharding, kernel)
    else:
        assert f"= {sharding}" in reason or f"= {kernel}" in reason or f"= {optimizer}" in reason
        assert "choose" in reason or "leave" in reason
        with pytest.raises(PlacementError, match=r"tables\.wide") as refused:
            make_plan([load], topology)
        assert reason in str(refused.value)
