from dataclasses import replace

from sharding.plan import Plan, TablePlan
from sharding.planning.costs import predict
from sharding.planning.load import TableLoad
from sharding.planning.planner import make_plan
from sharding.planning.topology import GIB, Topology, described
from sharding.planning.warnings import warnings_of

LOAD = TableLoad("t", 10**6, 64, False, 10_000, 10_000, optimizer="adagrad")


def warned(tables: dict[str, TablePlan], topology: Topology, load: TableLoad = LOAD) -> list[str]:
    loads = [replace(load, name=name) for name in tables]
    plan = Plan(topology.num_devices, topology.devices_per_host, topology.device, tables)
    return warnings_of(plan, predict(plan, loads, topology), loads, topology)


def test_a_good_plan_is_not_warned_about() -> None:
    topology = described("h100-80gb", 8)
    loads = [replace(LOAD, name=f"t{n}") for n in range(16)]
    plan = make_plan(loads, topology)
    assert warnings_of(plan, predict(plan, loads, topology), loads, topology) == []


def test_one_table_that_all_wait_for() -> None:
    tables = {"t": TablePlan("table_wise", "fused", 10**6, 64, (3,))}
    lines = warned(tables, described("h100-80gb", 8), replace(LOAD, ids_per_rank=10**6, vectors_per_rank=10**6))
    assert any(line.startswith("imbalance 6.") and "rank 3" in line for line in lines)
    assert any(line.startswith("tables.t is 100% of the work of rank 3, the busiest") for line in lines)


def test_ranks_that_are_nearly_or_more_than_full() -> None:
    tables = {"t": TablePlan("row_wise", "fused", 10**6, 64)}
    # 244 MiB of weights and as much state on each of 2 ranks, and some buffers.
    (nearly,) = warned(tables, Topology("cpu", 2, 2, int(0.3 * GIB)))
    assert nearly.startswith("rank 0 is nearly full: 254 MiB of 261 MiB")
    assert "and 1 more is nearly as full" in nearly
    (over,) = warned(tables, Topology("cpu", 2, 2, int(0.25 * GIB)))
    assert over.startswith("rank 0 would need")
    assert warned(tables, Topology("cpu", 2, 2, GIB)) == []


def test_tables_outside_of_device_memory() -> None:
    tables = {"t": TablePlan("row_wise", "fused_uvm", 10**6, 64)}
    (line,) = warned(tables, described("h100-80gb", 8))
    assert line.startswith("outside of device memory, which is much slower: tables.t;")
    lines = warned(tables, replace(described("h100-80gb", 8), host_memory=GIB // 2))
    assert any(line.startswith("the memory of host 0 is nearly full or overfull") for line in lines)


def test_small_tables_spread_thinly_are_listed_together() -> None:
    tables = {f"t{n}": TablePlan("row_wise", "fused", 20_000, 64) for n in range(7)}
    (line,) = warned(tables, described("h100-80gb", 64))
    assert line.startswith("row_wise with fewer than 1,000 rows on each of 64 ranks: tables.t0, ")
    assert "tables.t4 and 2 more;" in line


def test_dense_adam_moves_all_rows() -> None:
    tables = {"t": TablePlan("data_parallel", "dense", 1000, 64)}
    (line,) = warned(tables, described("h100-80gb", 2), replace(LOAD, num_rows=1000, optimizer="adam"))
    assert "also those not looked up: tables.t" in line
