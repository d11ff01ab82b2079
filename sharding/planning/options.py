"""The ways in which one table may lie, and what each costs wherever its blocks come to lie. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from sharding.config import CommunicationConfig, Kernel, Sharding
from sharding.errors import PlacementError
from sharding.plan import TablePlan
from sharding.planning.costs import (
    HOST_KERNELS,
    PHASES,
    asked_of,
    collective_kind,
    collectives,
    features,
    memory,
    ranks_of,
    stored_bytes,
)
from sharding.planning.load import TableLoad
from sharding.planning.shares import Float64, Shares, row_blocks, shares_of
from sharding.planning.topology import Topology
from sharding.support import unsupported_reason

# What `auto` chooses among; the first of equally good ones. table_column_wise is column_wise with fewer places to choose from.
AUTO: tuple[Sharding, ...] = ("table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard", "data_parallel")
# Optimizers under which a copy on every rank is trained as a sharded table is; the others move rows that no id asked for.
REPLICABLE = frozenset({"sgd", "adagrad", "rowwise_adagrad"})
# Tables that `auto` may copy to every rank: as large at most, and this part of what a device may hold.
SMALL_BYTES = {"cpu": 64 * 1024**2, "cuda": 1024**3}
SMALL_PART = 0.01
# Rows of fewer columns cost nearly as much to read as rows of so many: a processor fetches lines of 64 bytes, two at a time; a
# GPU's warp reads 128 numbers at once, and TorchRec's planner counts half of them as 1.15 of the whole's rate, a quarter as 1.75.
MIN_PARTITION = {"cpu": 32, "cuda": 64}
RANKED = frozenset({"table_wise", "column_wise", "table_column_wise"})
COLUMN_BLOCKS = frozenset({"column_wise", "table_column_wise", "grid_shard"})
HOSTED = frozenset({"table_row_wise", "grid_shard"})

Where = Literal["everywhere", "ranks", "ranks of one host", "hosts"]


@dataclass(frozen=True, eq=False)
class Option:
    """num_blocks equal blocks, each on another rank or host; one block on every rank where there is no choice.

    block_seconds: (5,) by phase, what a block adds on a rank that holds one; all_seconds: on every rank. Latency aside: `kind`
    says with which other tables this one shares its `collectives`. Bytes are of a block on one rank, in device memory and in its
    host's. asking_bytes: on every rank, the same for all options of a table.
    """

    table: TablePlan
    where: Where
    num_blocks: int
    ranks: tuple[int, ...] | None
    kind: tuple[Sharding, bool]
    collectives: int
    block_seconds: Float64
    all_seconds: Float64
    block_bytes: float
    host_bytes: float
    asking_bytes: float
    weights_bytes: float
    optimizer_bytes: float
    is_last_resort: bool

    @property
    def peak_seconds(self) -> float:
        return float((self.block_seconds + self.all_seconds).sum())


def options_of(load: TableLoad, topology: Topology, communication: CommunicationConfig) -> list[Option]:
    """All that constraints and the stack allow, in the order of AUTO. Raises PlacementError with the reasons if that is nothing.

    topology: of the ranks that share the tables. Whether an option fits into memory is not looked at.
    """
    reasons: dict[str, None] = {}
    tables = []
    for sharding in load.shardings or AUTO:
        for kernel in _kernels(load, sharding, topology):
            reason = _unsupported_reason(load, sharding, kernel, topology)
            if reason is not None:
                reasons[reason] = None
            elif load.shardings is not None or _is_worth_it(load, sharding, topology):
                tables += [
                    TablePlan(sharding, kernel, load.num_rows, load.dim, tuple(range(blocks)))
                    for blocks in _block_counts(load, sharding, topology)
                ]
    if not tables:
        raise PlacementError(f"tables.{load.name}: " + "; ".join(reasons))
    return list(with_costs(tables, load, topology, communication))


def _kernels(load: TableLoad, sharding: Sharding, topology: Topology) -> tuple[Kernel, ...]:
    if load.kernel != "auto":
        return (load.kernel,)
    if sharding == "data_parallel":
        return ("dense",)
    return ("fused", "fused_uvm_caching") if topology.device == "cuda" and topology.host_memory else ("fused",)


def _unsupported_reason(load: TableLoad, sharding: Sharding, kernel: Kernel, topology: Topology) -> str | None:
    reason = unsupported_reason(
        sharding,
        kernel,
        load.optimizer,
        load.pooled,
        topology.device,
        mean_pooling=load.mean_pooling,
        weight_decay=load.weight_decay,
    )
    if reason is not None:
        return reason
    ranks, per_host = topology.num_devices, topology.devices_per_host
    if load.ranks is not None:
        if sharding not in RANKED:
            return f"sharding = {sharding}: its ranks cannot be chosen; choose table_wise, or leave ranks out"
        if max(load.ranks) >= ranks:
            return f"ranks = {list(load.ranks)}: there are only workers 0 to {ranks - 1}"
    if sharding in HOSTED | {"table_column_wise"} and ranks % per_host:
        return f"sharding = {sharding}: {ranks} workers do not fill hosts of {per_host}; choose row_wise or column_wise"
    if sharding in HOSTED | {"row_wise"}:
        spread = per_host if sharding in HOSTED else ranks
        if not row_blocks(load.num_rows, spread).all():
            return (
                f"sharding = {sharding}: the table's {load.num_rows} rows would leave one of {spread} workers without any; "
                "choose table_wise or data_parallel, or lower cluster.num_workers"
            )
    return None


def _is_worth_it(load: TableLoad, sharding: Sharding, topology: Topology) -> bool:
    """Whether `auto` looks at this sharding at all."""
    if sharding == "data_parallel":
        most = min(SMALL_BYTES[topology.device], SMALL_PART * topology.capacity_bytes)
        is_small = load.num_rows * load.dim * 4 <= most
        return is_small and load.optimizer in REPLICABLE and topology.num_devices > 1
    return sharding not in HOSTED or topology.num_devices > topology.devices_per_host


def _block_counts(load: TableLoad, sharding: Sharding, topology: Topology) -> list[int]:
    if sharding in ("row_wise", "data_parallel"):
        return [0]
    if sharding not in COLUMN_BLOCKS:
        return [1]
    hosts = topology.num_devices // topology.devices_per_host
    most = {"column_wise": topology.num_devices, "table_column_wise": topology.devices_per_host, "grid_shard": hosts}
    places = min(most[sharding], len(load.ranks or range(topology.num_devices)))
    counts = [n for n in range(2, min(places, load.dim // 4) + 1) if load.dim % (4 * n) == 0]
    wide = [n for n in counts if load.dim // n >= (load.min_partition or MIN_PARTITION[topology.device])]
    if load.shardings is None:
        return wide
    # Asked for by name, so as wide as a split can be where none is as wide as it should; one block is all that one rank can have.
    return wide or ([] if load.min_partition else counts[:1]) or [1]


def with_costs(
    tables: Sequence[TablePlan], load: TableLoad, topology: Topology, communication: CommunicationConfig
) -> Iterator[Option]:
    """The costs of a block are those of the first rank, on which all shardings put one; of every rank, those without a shard."""
    asked = asked_of(tables, [load] * len(tables))
    whole = shares_of(tables, topology.num_devices, topology.devices_per_host)
    shares = Shares(**{f.name: np.pad(getattr(whole, f.name)[:, :1], ((0, 0), (0, 1))) for f in fields(Shares)})
    ranks = ranks_of(topology.num_devices, topology.devices_per_host, np.array([0, 0]))
    by_phase = features(asked, shares, ranks, topology, communication)
    seconds = np.stack(
        [
            values @ np.array([getattr(topology.costs, name) for name in names])
            for values, names in (by_phase[phase] for phase in PHASES)
        ],
        axis=-1,
    )
    device_bytes, host_bytes = memory(asked, shares, ranks)
    weights, state = stored_bytes(asked, shares)
    for n, table in enumerate(tables):
        yield Option(
            table=table,
            where=_where(table.sharding),
            num_blocks=len(table.places) or topology.num_devices,
            ranks=load.ranks,
            kind=collective_kind(table.sharding, load.pooled),
            collectives=sum(collectives(table.sharding, load.pooled)),
            block_seconds=seconds[n, 0] - seconds[n, 1],
            all_seconds=seconds[n, 1],
            block_bytes=float(device_bytes[n, 0] - device_bytes[n, 1]),
            host_bytes=float(host_bytes[n, 0]),
            asking_bytes=float(device_bytes[n, 1]),
            weights_bytes=float(weights[n, 0]),
            optimizer_bytes=float(state[n, 0]),
            is_last_resort=load.kernel == "auto" and table.kernel in HOST_KERNELS,
        )


def _where(sharding: Sharding) -> Where:
    if sharding in HOSTED:
        return "hosts"
    if sharding == "table_column_wise":
        return "ranks of one host"
    return "ranks" if sharding in RANKED else "everywhere"
