"""The plan of all tables: for each a sharding, a kernel and ranks, so that no rank is too full and the busiest has least to do."""

from collections.abc import Sequence

from sharding.config import CommunicationConfig, Kernel, Sharding
from sharding.errors import PlacementError
from sharding.plan import Plan, TablePlan, shards_of
from sharding.planning.costs import FP32
from sharding.planning.load import TableLoad
from sharding.planning.topology import Topology
from sharding.support import why_unsupported


def make_plan(
    loads: Sequence[TableLoad],
    topology: Topology,
    communication: CommunicationConfig = FP32,
    inputs: str = "",
    replica_groups: int = 1,
) -> Plan:
    """Raises PlacementError, naming the table, if a table can lie nowhere."""
    tables = {load.name: _first_that_fits(load, topology, n) for n, load in enumerate(loads)}
    return Plan(
        topology.num_devices, topology.devices_per_host, topology.device, tables, inputs, replica_groups=replica_groups
    )


def _first_that_fits(load: TableLoad, topology: Topology, number: int) -> TablePlan:
    reasons = []
    for sharding in load.shardings or ("row_wise", "table_wise"):
        kernel: Kernel = ("dense" if sharding == "data_parallel" else "fused") if load.kernel == "auto" else load.kernel
        reason = why_unsupported(sharding, kernel, load.optimizer, load.pooled, topology.device)
        if reason is None:
            table = TablePlan(sharding, kernel, load.num_rows, load.dim, _places(sharding, load, topology, number))
            if all(
                shard.num_rows
                for shard in shards_of(
                    table, topology.num_devices, min(topology.devices_per_host, topology.num_devices)
                )
            ):
                return table
            reason = (
                f"sharding = {sharding}: the table's {load.num_rows} rows would leave one of {topology.num_devices} workers "
                "without any; choose table_wise or data_parallel, or lower cluster.num_workers"
            )
        reasons.append(reason)
    raise PlacementError(f"tables.{load.name}: " + "; ".join(reasons))


def _places(sharding: Sharding, load: TableLoad, topology: Topology, number: int) -> tuple[int, ...]:
    ranks = load.ranks or range(topology.num_devices)
    match sharding:
        case "table_wise":
            return (ranks[number % len(ranks)],)
        case "column_wise" | "table_column_wise":
            num_blocks = max(n for n in range(1, len(ranks) + 1) if load.dim % (4 * n) == 0)
            return tuple(ranks[:num_blocks])
        case "table_row_wise" | "grid_shard":
            return (0,)
        case _:
            return ()
