"""The best plan there is, by trying every option of every table at all of its places: for a few tables on a few ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

from sharding.plan import Plan, TablePlan
from sharding.planning.costs import FP32, predict
from sharding.planning.load import TableLoad
from sharding.planning.options import options_of
from sharding.planning.topology import Topology


def least_step_seconds(loads: Sequence[TableLoad], topology: Topology) -> float:
    """Return the step time of the best plan; infinite if no plan fits into memory."""
    best = float("inf")
    for choice in product(*(list(_placed(load, topology)) for load in loads)):
        tables = {load.name: table for load, table in zip(loads, choice, strict=True)}
        plan = Plan(topology.num_devices, topology.devices_per_host, topology.device, tables)
        prediction = predict(plan, loads, topology)
        if prediction.memory_bytes.sum(axis=0).max() <= topology.capacity_bytes:
            best = min(best, prediction.step_seconds)
    return best


def _placed(load: TableLoad, topology: Topology) -> Iterator[TablePlan]:
    for option in options_of(load, topology, FP32):
        if option.is_last_resort:
            continue
        match option.where:
            case "everywhere":
                yield option.table
            case "hosts":
                hosts = range(topology.num_devices // topology.devices_per_host)
                yield from (replace(option.table, places=p) for p in combinations(hosts, option.num_blocks))
            case _:
                ranks = load.ranks or range(topology.num_devices)
                yield from (replace(option.table, places=p) for p in combinations(ranks, option.num_blocks))
