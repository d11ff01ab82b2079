"""Plans: as good as the best there is, within memory, as constrained, the same for the same question."""

import random
import resource
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sharding.config import Kernel, Sharding, SparseOptimizer
from sharding.errors import PlacementError
from sharding.plan import Plan
from sharding.planning.costs import predict
from sharding.planning.load import TableLoad
from sharding.planning.planner import make_plan
from sharding.planning.topology import GIB, Topology, described
from tests.sharding.planning.exhaustive import least_step_seconds

MAX_FROM_BEST = 1.1
CPU = Topology("cpu", 2, 2, 8 * GIB)


def sequence(name: str, num_rows: int, ids: float = 10_000, dim: int = 64, **constraints: object) -> TableLoad:
    return TableLoad(name, num_rows, dim, False, ids, ids, **constraints)  # type: ignore[arg-type]


def drawn_loads(rng: np.random.Generator, count: int, most_rows: float = 10**6.5) -> list[TableLoad]:
    optimizers: list[SparseOptimizer] = ["sgd", "adagrad", "rowwise_adagrad"]
    loads = []
    for n in range(count):
        pooled, ids = bool(rng.random() < 0.5), float(10 ** rng.uniform(2, 5))
        loads.append(
            TableLoad(
                f"t{n:03d}",
                int(10 ** rng.uniform(2, np.log10(most_rows))),
                int(rng.choice([64, 128, 256])),
                pooled,
                ids,
                ids / float(rng.integers(1, 30)) if pooled else ids,
                optimizer=optimizers[rng.integers(3)],
            )
        )
    return loads


def drawn_topology(rng: np.random.Generator, loads: Sequence[TableLoad]) -> Topology:
    """Return two or three ranks, on one host or each on its own, with ample or barely enough memory."""
    num_ranks = int(rng.integers(2, 4))
    per_host = int(rng.choice([1, num_ranks]))
    devices = (described("h100-80gb", num_ranks, per_host), Topology("cpu", num_ranks, per_host, 0))[rng.integers(2)]
    weights = sum(4 * load.num_rows * load.dim for load in loads)
    return replace(devices, device_memory=int(10 ** rng.uniform(0, 1.5) * 2 * weights / num_ranks + 3e8))


def step_seconds(plan: Plan, loads: Sequence[TableLoad], topology: Topology) -> float:
    return predict(plan, loads, topology).step_seconds


@pytest.mark.parametrize("seed", range(24))
def test_plans_are_nearly_as_good_as_the_best_there_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    loads = drawn_loads(rng, int(rng.integers(1, 5)))
    topology = drawn_topology(rng, loads)
    loads = loads[: 6 - topology.num_devices]  # four on two ranks, three on three: seconds for all of them
    least = least_step_seconds(loads, topology)
    if not np.isfinite(least):
        with pytest.raises(PlacementError):
            make_plan(loads, topology)
        return
    plan = make_plan(loads, topology)
    prediction = predict(plan, loads, topology)
    assert prediction.memory_bytes.sum(axis=0).max() <= topology.capacity_bytes
    assert least * (1 - 1e-9) <= prediction.step_seconds <= MAX_FROM_BEST * least


def test_equal_questions_have_equal_answers_in_any_order_of_tables() -> None:
    loads = drawn_loads(np.random.default_rng(7), 30)
    topology = described("h100-80gb", 16)
    plan = make_plan(loads, topology, inputs="asked")
    shuffled = random.Random(1).sample(loads, len(loads))
    again = make_plan(shuffled, topology, inputs="asked")
    assert again == plan
    assert list(plan.tables) == [load.name for load in loads]
    assert list(again.tables) == [load.name for load in shuffled]
    assert plan.inputs == "asked"


def test_tables_that_are_the_same_are_planned_as_if_they_were_not() -> None:
    topology = described("a100-80gb", 8)
    same = [sequence(f"t{n:02d}", 10**6, optimizer="adagrad") for n in range(12)]
    # Too little difference to matter, but each is looked at by itself.
    different = [replace(load, ids_per_rank=load.ids_per_rank + n * 1e-6) for n, load in enumerate(same)]
    seconds = step_seconds(make_plan(same, topology), same, topology)
    assert step_seconds(make_plan(different, topology), different, topology) == pytest.approx(seconds, rel=1e-6)


def test_equal_tables_spread_evenly() -> None:
    loads = [sequence(f"t{n:02d}", 10**6, shardings=("table_wise",)) for n in range(24)]
    plan = make_plan(loads, described("a100-80gb", 8))
    ranks = [table.places[0] for table in plan.tables.values()]
    assert sorted(np.bincount(ranks, minlength=8)) == [3] * 8


@pytest.mark.parametrize(
    ("pooled", "sharding"),
    [
        *((False, s) for s in ("data_parallel", "table_wise", "row_wise", "column_wise")),
        *((True, s) for s in ("table_row_wise", "table_column_wise", "grid_shard", "row_wise", "column_wise")),
    ],
)
def test_a_sharding_that_is_asked_for_is_used(pooled: bool, sharding: Sharding) -> None:
    load = replace(sequence("t", 10**5, optimizer="adagrad", shardings=(sharding,)), pooled=pooled)
    topology = replace(CPU, num_devices=4)
    plan = make_plan([load], topology)
    table = plan.tables["t"]
    assert table.sharding == sharding
    assert table.kernel == ("dense" if sharding == "data_parallel" else "fused")
    shards = plan.shards("t")
    if sharding != "data_parallel":
        assert sum(shard.num_rows * shard.num_columns for shard in shards) == 64 * 10**5
    if sharding in ("column_wise", "table_column_wise", "grid_shard"):
        assert table.places == (0, 1)  # blocks of 32 columns, not fewer
    if sharding == "table_column_wise":
        assert len({shard.rank // 2 for shard in shards}) == 1


def test_ranks_are_those_that_may_hold_a_table() -> None:
    loads = [sequence(f"t{n}", 10**6, optimizer="adagrad", ranks=(1, 3)) for n in range(4)]
    plan = make_plan(loads, described("h100-80gb", 8))
    assert {rank for table in plan.tables.values() for rank in table.places} == {1, 3}


def test_column_blocks_are_as_wide_as_asked_for() -> None:
    load = sequence("t", 10**6, dim=256, optimizer="adagrad", shardings=("column_wise",))
    wide = make_plan([replace(load, min_partition=128)], described("h100-80gb", 8))
    assert len(wide.tables["t"].places) == 2
    narrow = make_plan([replace(load, dim=24, shardings=("column_wise",))], CPU)
    assert len(narrow.tables["t"].places) == 2  # asked for by name, though 12 columns are few


def test_auto_copies_small_hot_tables_only_where_that_is_exact() -> None:
    topology = described("h100-80gb", 8)
    for optimizer, copied in (("rowwise_adagrad", True), ("sgd", True), ("adam", False)):
        plan = make_plan([sequence("hot", 2000, ids=50_000, optimizer=optimizer)], topology)
        assert (plan.tables["hot"].sharding == "data_parallel") == copied
    large = make_plan([sequence("large", 10**8, ids=50_000)], topology)
    assert large.tables["large"].sharding != "data_parallel"


def test_tables_leave_the_gpu_only_if_they_fit_in_no_other_way() -> None:
    loads = [sequence(f"t{n}", 10**8, optimizer="adagrad") for n in range(4)]  # 48 GiB each
    ample = make_plan(loads, described("a100-80gb", 4))
    assert {table.kernel for table in ample.tables.values()} == {"fused"}
    tight = make_plan(loads, described("a100-80gb", 2))
    kernels = [table.kernel for table in tight.tables.values()]
    assert "fused_uvm_caching" in kernels
    assert "fused" in kernels  # not more of them than it takes
    prediction = predict(tight, loads, described("a100-80gb", 2))
    assert prediction.memory_bytes.sum(axis=0).max() <= described("a100-80gb", 2).capacity_bytes


def test_replica_groups_divide_the_ranks() -> None:
    loads = [sequence("t", 10**6)]
    plan = make_plan(loads, described("h100-80gb", 8), replica_groups=2)
    assert plan.replica_groups == 2
    assert {shard.rank for shard in plan.shards("t")} <= set(range(4))
    with pytest.raises(PlacementError, match=r"plan\.replica_groups = 3 does not divide the number of workers, 8"):
        make_plan(loads, described("h100-80gb", 8), replica_groups=3)


def test_no_tables_no_plan_to_make() -> None:
    assert make_plan([], CPU).tables == {}


def test_a_table_too_large_for_one_worker_is_named_with_its_bytes() -> None:
    topology = Topology("cpu", 1, 1, int(2.4 * GIB))
    with pytest.raises(PlacementError) as caught:
        make_plan([sequence("small", 1000), sequence("item", 18_000_000, ids=1000)], topology)
    assert str(caught.value) == (
        "tables.item needs 4.36 GiB on one of 1 workers (4.29 GiB weights, 68.7 MiB optimizer state, 0.992 MiB buffers of a step), "
        "which may hold 2.04 GiB (plan.device_memory = 2.4 GiB less 15 % reserved); raise cluster.num_workers or plan.device_memory"
    )
    assert (
        make_plan([sequence("item", 18_000_000)], replace(topology, num_devices=3)).tables["item"].sharding
        == "row_wise"
    )


def test_tables_too_large_together_are_counted_together() -> None:
    loads = [sequence(f"t{n}", 2_000_000, ids=100, dim=128, optimizer="adagrad") for n in range(5)]  # 1.9 GiB each
    with pytest.raises(PlacementError) as caught:
        make_plan(loads, replace(CPU, device_memory=4 * GIB))
    message = str(caught.value)
    assert message.startswith("tables.t")
    assert "488 MiB weights, 488 MiB optimizer state" in message
    assert "and the other tables take" in message
    assert "of the 6.8 GiB of all workers" in message
    assert "optimizer with less state" in message


def test_the_remedy_depends_on_the_attempts() -> None:
    huge = sequence("huge", 10**10, ids=100, optimizer="adagrad")
    for topology, load, remedy in (
        (described("a100-80gb", 8), huge, "raise plan.host_memory, of which each host has 1.82 TiB"),
        (described("a100-80gb", 8), replace(huge, kernel="fused"), "set tables.huge.kernel = fused_uvm_caching"),
        (replace(described("a100-80gb", 8), host_memory=0), huge, "state plan.host_memory"),
        (CPU, replace(huge, shardings=("table_wise",)), "let tables.huge.sharding be row_wise"),
    ):
        with pytest.raises(PlacementError) as caught:
            make_plan([load], topology)
        assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (
            {"shardings": ("grid_shard",)},
            "tables.t: sharding = grid_shard: not for tables that are looked up per event",
        ),
        ({"shardings": ("column_wise",)}, "tables.t: sharding = column_wise with optimizer = rowwise_adagrad"),
        ({"optimizer": "lamb"}, "optimizer = lamb with kernel = fused: needs a GPU"),
        ({"kernel": "fused_uvm"}, "kernel = fused_uvm: needs a GPU"),
        ({"shardings": ("table_wise",), "ranks": (0, 2)}, "ranks = [0, 2]: there are only workers 0 to 1"),
        ({"shardings": ("row_wise",), "ranks": (0,)}, "sharding = row_wise: its ranks cannot be chosen"),
        ({"num_rows": 1, "shardings": ("row_wise",)}, "the table's 1 rows would leave one of 2 workers without any"),
    ],
)
def test_constraints_that_nothing_meets_are_refused_with_the_reason(
    constraints: dict[str, object], message: str
) -> None:
    load = replace(sequence("t", 1000), **constraints)  # type: ignore[arg-type]
    with pytest.raises(PlacementError) as caught:
        make_plan([load], CPU)
    assert message in str(caught.value)


@pytest.mark.parametrize("kernel", ["fused_uvm", "fused_uvm_caching"])
def test_a_kernel_that_is_asked_for_is_used(kernel: Kernel) -> None:
    plan = make_plan([sequence("t", 10**6, kernel=kernel)], described("h100-80gb", 2))
    assert plan.tables["t"].kernel == kernel


def test_hosts_that_are_not_full_have_no_tables_of_their_own() -> None:
    load = replace(sequence("t", 10**6, shardings=("table_row_wise",)), pooled=True)
    with pytest.raises(PlacementError, match="6 workers do not fill hosts of 4"):
        make_plan([load], replace(CPU, num_devices=6, devices_per_host=4))
    plan = make_plan([replace(load, shardings=None)], replace(CPU, num_devices=6, devices_per_host=4))
    assert plan.tables["t"].sharding in ("row_wise", "table_wise")


def production_loads(count: int, total_rows: float) -> list[TableLoad]:
    """Return tables of very different sizes, seven in ten of them pooled, for 1,024 examples per rank."""
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(0, 2, count)
    loads = []
    for n, num_rows in enumerate(np.maximum(100, sizes / sizes.sum() * total_rows)):
        pooled = bool(rng.random() < 0.7)
        ids = 1024.0 * (float(rng.integers(1, 20)) if pooled else 20.0)
        dim = int(rng.choice([64, 128, 256]))
        loads.append(TableLoad(f"t{n:03d}", int(num_rows), dim, pooled, ids, 1024.0 if pooled else ids))
    return loads


@pytest.mark.parametrize("count", [1, 200])
def test_1024_devices_and_ten_billion_rows_take_seconds(count: int) -> None:
    loads, topology = production_loads(count, 1e10), described("h100-80gb", 1024)
    started = time.perf_counter()
    plan = make_plan(loads, topology)
    assert time.perf_counter() - started < 30.0  # about one on a quiet machine
    prediction = predict(plan, loads, topology)
    assert prediction.memory_bytes.sum(axis=0).max() <= topology.capacity_bytes
    assert sum(table.num_rows for table in plan.tables.values()) == pytest.approx(1e10, rel=1e-3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 1024**2  # KiB


def test_a_large_table_makes_room_in_host_memory_where_that_is_the_only_way():
    """It would fit on the devices itself, and then leave too little for the others, which cannot all be offloaded either."""
    topology = replace(described("h100-80gb", 8), device_memory=30 * GIB, reserved_fraction=0.15, host_memory=300 * GIB)
    large = TableLoad("large", 600_000_000, 64, True, 1000.0, 500.0)
    others = [TableLoad(f"t{n:02d}", 8_000_000, 64, True, 1000.0, 500.0, kernel="fused") for n in range(60)]
    plan = make_plan([large, *others], topology)
    assert plan.tables["large"].kernel == "fused_uvm_caching"
    assert {plan.tables[load.name].kernel for load in others} <= {"fused", "dense"}
    assert predict(plan, [large, *others], topology).memory_bytes.sum(axis=0).max() <= topology.capacity_bytes


def averaged(name: str, *shardings: Sharding) -> TableLoad:
    return TableLoad(name, 100_000_000, 64, True, 5000.0, 500.0, shardings=shardings or None, mean_pooling=True)


def test_averaged_bags_are_split_by_rows_only_where_all_are():
    topology = described("h100-80gb", 8)
    summed = replace(averaged("summed"), mean_pooling=False)
    by_rows = {"row_wise", "table_row_wise"}
    assert make_plan([averaged("mean"), summed], topology).tables["mean"].sharding not in by_rows
    both = [averaged("mean", "row_wise"), replace(summed, shardings=("row_wise",))]
    assert {table.sharding for table in make_plan(both, topology).tables.values()} == {"row_wise"}
    with pytest.raises(PlacementError, match=r"tables\.mean: sharding = row_wise: bags that are averaged"):
        make_plan([averaged("mean", "row_wise"), summed], topology)
