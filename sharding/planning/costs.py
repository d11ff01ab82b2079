"""The cost model: bytes and seconds of every table on every rank, as formulas. Imports no torch.

Symbols: W ranks (of one replica group), L of them on the host of a rank, H = W / L. A rank looks up n ids of a table in a step
and gets v vectors of d numbers: v = n for a sequence; for a pooled table v bags. A rank holds x numbers of a table in y rows.
The part q of the n ids of every rank is routed to it (1/W if row_wise, 1 for every column block). For an id, w numbers are read
on average, and the rank's shards are c columns wide. f, b: bytes of a number that is sent forward and backward. C is a constant
of CostConstants; everything else follows from plan and topology. The model assumes that ids are spread evenly over rows, and
that all ranks look up the same number of ids.

memory      4x + 4(k x + j y), k numbers of optimizer state per number and j per row; 4x more for the gradient of a dense kernel.
            Buffers: 8 W n q for ids, 2 * 4 W o for the read rows and their gradient, where o = n w (sequence) or v c (pooled); on
            every rank 8 n + 2 * 4 v d. fused_uvm: weights and state in host memory; fused_uvm_caching, key_value: the same, with
            cache_load_factor of the weights in device memory, and 4 bytes for each row (the cache's index).
input       C.network * (8 n q + 4 v a) * peers + C.seconds_per_input_id * W n q. a: shards of a pooled table, each with its own
            lengths. Ids with weights have 12 bytes instead of 8, here and in memory.
lookup      C.lookup_read * 4 W n w / device_bandwidth + C.lookup_write * 4 W o / device_bandwidth
            + C.seconds_per_lookup_id * W n q. Rows in host memory: C.host_access * 4 W n w / host_bandwidth, times the rate of
            cache misses, 1 - cache_load_factor.
output      C.network * f o * peers + C.copy * 4 v d / device_bandwidth
gradient    the same with b
update      C.update_rows * 2 * 4 W n (w + k w + j q) / device_bandwidth + C.update_gradients * 4 W o / device_bandwidth
            + C.seconds_per_update_id * W n q; C.host_access as in lookup, for reading and for writing.

peers = (L - 1) / intra_host_bandwidth + (W - L) / inter_host_bandwidth: an owner exchanges the same amount with every other
rank. Only the owner's side is counted. All ranks have equal requests, so the work of a rank for its own requests is the mean of
the owners' work over all ranks, which the busiest owner exceeds. Bags with parts on several ranks (row_wise, table_row_wise,
grid_shard) are summed on the way, within hosts first: peers = (L - 1) H / intra + (H - 1) / inter.

data_parallel: looked up on the requesting rank (W is 1 in lookup and update). Only the dense gradient is sent, in fp32:
C.network * 2 * 4x ((L - 1) / L / intra + (H - 1) / (H L) / inter). A dense kernel's update moves the whole shard, 2 * 4x (1 +
k) + 2 * 4 j y, and its gradient three times (zeroed, added to, read), 3 * 4x.

Each collective adds C.latency * latency_seconds: 3 in input (sizes, lengths, ids), 1 in output and in gradient, 2 each where
bags are summed within a host and then sent on; for data_parallel 1 in gradient. Tables of one sharding share them in equal
parts. There are none on one rank.

Not counted: overlap with the dense part, duplicate ids (each is read and updated), skewed ids, the synchronisation of replica
groups.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.config import CommunicationConfig, Sharding, SparseOptimizer
from sharding.plan import Plan, TablePlan
from sharding.planning.load import TableLoad
from sharding.planning.prediction import Prediction
from sharding.planning.shares import Float64, Shares, shares_of
from sharding.planning.topology import Topology

Bool = NDArray[np.bool_]

FP32 = CommunicationConfig()
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}
DEFAULT_CACHE_LOAD_FACTOR = 0.2
# Numbers of optimizer state per weight, and per row.
STATE: dict[SparseOptimizer, tuple[int, int]] = {
    "sgd": (0, 0),
    "adagrad": (1, 0),
    "rowwise_adagrad": (0, 1),
    "adam": (2, 0),
    "lamb": (2, 0),
    "partial_rowwise_adam": (1, 1),
    "partial_rowwise_lamb": (1, 1),
}
SUMMED = frozenset({"row_wise", "table_row_wise", "grid_shard"})
HOST_KERNELS = frozenset({"fused_uvm", "fused_uvm_caching", "key_value"})
CACHING_KERNELS = frozenset({"fused_uvm_caching", "key_value"})
PHASES = ("input", "lookup", "output", "gradient", "update")


Features = dict[str, tuple[Float64, tuple[str, ...]]]


def predict(
    plan: Plan,
    loads: Sequence[TableLoad],
    topology: Topology,
    communication: CommunicationConfig = FP32,
) -> Prediction:
    """Predict the costs of `plan` with `loads`. Tables are in the order of the plan, each with a load."""
    tables, use, shares, ranks = _of_plan(plan, loads, topology)
    constants = topology.costs
    seconds = {
        f"{phase}_seconds": _tiled(features @ np.array([getattr(constants, name) for name in names]), plan)
        for phase, (features, names) in _with_latency(tables, use, shares, ranks, topology, communication).items()
    }
    device_bytes, host_bytes = memory(use, shares, ranks)
    return Prediction(
        tables=tuple(plan.tables),
        memory_bytes=_tiled(device_bytes, plan),
        host_memory_bytes=_tiled(host_bytes, plan),
        sent_bytes=_tiled(_sent_bytes(use, shares, ranks, communication), plan),
        **seconds,
    )


def phase_features(
    plan: Plan,
    loads: Sequence[TableLoad],
    topology: Topology,
    communication: CommunicationConfig = FP32,
) -> Features:
    """Return the features (T, W, k) of each phase and the names of the k CostConstants that they are multiplied with.

    The product is that phase of `predict`. Features are seconds for factors, and counts for seconds_per_...
    """
    tables, use, shares, ranks = _of_plan(plan, loads, topology)
    features = _with_latency(tables, use, shares, ranks, topology, communication)
    return {phase: (_tiled(values, plan), names) for phase, (values, names) in features.items()}


@dataclass(frozen=True)
class TableUse:
    """The use of tables in a step and how they are stored: (T, 1), to broadcast with (T, R) shares."""

    ids: Float64
    vectors: Float64
    dim: Float64
    id_bytes: Float64
    pooled: Bool
    replicated: Bool
    dense: Bool
    summed: Bool
    in_host: Bool
    cached: Float64
    state_per_number: Float64
    state_per_row: Float64


def use_of(tables: Sequence[TablePlan], loads: Sequence[TableLoad]) -> TableUse:
    def column(values: Iterable[float]) -> Float64:
        return np.array(list(values), dtype=np.float64)[:, None]

    pooled = column(load.pooled for load in loads) > 0
    return TableUse(
        ids=column(load.ids_per_rank for load in loads),
        vectors=column(load.vectors_per_rank for load in loads),
        dim=column(load.dim for load in loads),
        id_bytes=column(12.0 if load.weighted else 8.0 for load in loads),
        pooled=pooled,
        replicated=column(table.sharding == "data_parallel" for table in tables) > 0,
        dense=column(table.kernel == "dense" for table in tables) > 0,
        summed=pooled & (column(table.sharding in SUMMED for table in tables) > 0),
        in_host=column(table.kernel in HOST_KERNELS for table in tables) > 0,
        cached=column(
            (load.cache_load_factor or DEFAULT_CACHE_LOAD_FACTOR) if table.kernel in CACHING_KERNELS else 0.0
            for table, load in zip(tables, loads, strict=True)
        ),
        state_per_number=column(STATE[load.optimizer][0] for load in loads),
        state_per_row=column(STATE[load.optimizer][1] for load in loads),
    )


@dataclass(frozen=True)
class RankGroup:
    """The ranks that share tables."""

    count: int  # number of ranks
    host_sizes: Float64  # (R,) number of ranks on the host of each considered rank


def rank_group(num_ranks: int, ranks_per_host: int, looked_at: NDArray[np.int64] | None = None) -> RankGroup:
    hosts = np.arange(num_ranks) // ranks_per_host
    sizes = np.bincount(hosts)[hosts].astype(np.float64)
    return RankGroup(num_ranks, sizes if looked_at is None else sizes[looked_at])


def all_reduce_seconds(num_bytes: float, topology: Topology) -> float:
    """Return the time of summing so many bytes over all ranks, as for data_parallel tables, without latency."""
    ranks = rank_group(topology.num_devices, min(topology.devices_per_host, topology.num_devices))
    return float(topology.costs.network * num_bytes * _seconds_per_byte(ranks, topology)[2].max())


def all_to_all_seconds(num_bytes: float, topology: Topology) -> float:
    """Return the time in which each rank sends so many bytes, equally many to each rank, without latency."""
    ranks = rank_group(topology.num_devices, min(topology.devices_per_host, topology.num_devices))
    each = num_bytes / topology.num_devices
    return float(topology.costs.network * each * _seconds_per_byte(ranks, topology)[0].max())


def features(
    use: TableUse, shares: Shares, ranks: RankGroup, topology: Topology, communication: CommunicationConfig
) -> Features:
    """Return the (T, R, k) features of the formulas above, without those of latency."""
    sources = np.where(use.replicated, 1.0, ranks.count)
    ids = sources * use.ids * shares.routed
    read = 4.0 * sources * use.ids * shares.width / topology.device_bandwidth
    returned = 4.0 * sources * _returned(use, shares) / topology.device_bandwidth
    missed = np.where(use.in_host, 1.0 - use.cached, 0.0)
    from_host = missed * 4.0 * sources * use.ids * shares.width / topology.host_bandwidth
    state = use.state_per_number * shares.width + use.state_per_row * shares.routed
    moved = 4.0 * 2.0 * sources * use.ids * (shares.width + state)
    moved_densely = 4.0 * (
        (2.0 * (1.0 + use.state_per_number) + 3.0) * shares.numbers + 2.0 * use.state_per_row * shares.rows
    )
    updated = np.where(use.dense, moved_densely, moved) / topology.device_bandwidth
    arriving = np.where(use.replicated, 0.0, 4.0 * use.vectors * use.dim / topology.device_bandwidth)
    direct, summed, reduced = _seconds_per_byte(ranks, topology)
    back = np.where(use.summed, summed, direct) * _returned(use, shares)
    lengths = np.where(use.pooled, 4.0 * use.vectors * shares.blocks, 0.0)
    exchanged = ~use.replicated
    there = exchanged * direct * (use.id_bytes * use.ids * shares.routed + lengths)
    all_reduced = use.replicated * reduced * 4.0 * shares.numbers
    forward = BYTES[communication.forward]
    backward = BYTES[communication.backward]
    terms: dict[str, dict[str, Float64]] = {
        "input": {"network": there, "seconds_per_input_id": exchanged * ids},
        "lookup": {
            "lookup_read": read,
            "lookup_write": returned,
            "seconds_per_lookup_id": ids,
            "host_access": from_host,
        },
        "output": {"network": exchanged * back * forward, "copy": arriving},
        "gradient": {"network": exchanged * back * backward + all_reduced, "copy": arriving},
        "update": {
            "update_rows": updated,
            "update_gradients": returned,
            "seconds_per_update_id": ids,
            "host_access": 2.0 * from_host,
        },
    }
    return {
        phase: (np.stack(np.broadcast_arrays(*values.values(), shares.width)[:-1], axis=-1), tuple(values))
        for phase, values in terms.items()
    }


def memory(use: TableUse, shares: Shares, ranks: RankGroup) -> tuple[Float64, Float64]:
    """Return the (T, R) bytes in device memory, and outside of it."""
    weights, optimizer = stored_bytes(use, shares)
    gradients = np.where(use.dense, weights, 0.0)
    index = np.where(use.cached > 0.0, 4.0 * shares.rows, 0.0)
    on_device = np.where(use.in_host, use.cached * weights + index, weights + optimizer) + gradients
    buffers = ranks.count * (use.id_bytes * use.ids * shares.routed + 2.0 * 4.0 * _returned(use, shares))
    own = use.id_bytes * use.ids + 2.0 * 4.0 * use.vectors * use.dim
    on_device += np.where(use.replicated, 0.0, buffers) + own
    return on_device, np.where(use.in_host, weights + optimizer, 0.0)


def stored_bytes(use: TableUse, shares: Shares) -> tuple[Float64, Float64]:
    """Return the (T, R) bytes of weights and of optimizer state, in any memory."""
    return 4.0 * shares.numbers, 4.0 * (use.state_per_number * shares.numbers + use.state_per_row * shares.rows)


def collectives(sharding: Sharding, pooled: bool) -> tuple[int, int, int, int, int]:
    """Return the number of collectives in each phase, which all tables of one kind (`collective_kind`) share."""
    if sharding == "data_parallel":
        return 0, 0, 0, 1, 0
    stages = 2 if pooled and sharding in ("table_row_wise", "grid_shard") else 1
    return 3, 0, stages, stages, 0


def collective_kind(sharding: Sharding, pooled: bool) -> tuple[Sharding, bool]:
    return sharding, pooled and sharding != "data_parallel"


def _of_plan(
    plan: Plan, loads: Sequence[TableLoad], topology: Topology
) -> tuple[list[tuple[TablePlan, TableLoad]], TableUse, Shares, RankGroup]:
    by_name = {load.name: load for load in loads}
    tables = [(table, by_name[name]) for name, table in plan.tables.items()]
    num_ranks = plan.world_size // plan.replica_groups
    ranks_per_host = min(plan.local_world_size, num_ranks)
    return (
        tables,
        use_of([table for table, _ in tables], [load for _, load in tables]),
        shares_of([table for table, _ in tables], num_ranks, ranks_per_host),
        rank_group(num_ranks, ranks_per_host),
    )


def _with_latency(
    tables: Sequence[tuple[TablePlan, TableLoad]],
    use: TableUse,
    shares: Shares,
    ranks: RankGroup,
    topology: Topology,
    communication: CommunicationConfig,
) -> Features:
    kinds = Counter(collective_kind(table.sharding, load.pooled) for table, load in tables)
    counts = np.array(
        [
            np.array(collectives(table.sharding, load.pooled)) / kinds[collective_kind(table.sharding, load.pooled)]
            for table, load in tables
        ]
    ).reshape(-1, len(PHASES))
    seconds = counts * topology.latency_seconds * (ranks.count > 1)
    shape = *shares.width.shape, 1
    return {
        phase: (
            np.concatenate([values, np.broadcast_to(seconds[:, n, None, None], shape)], axis=-1),
            (*names, "latency"),
        )
        for n, (phase, (values, names)) in enumerate(features(use, shares, ranks, topology, communication).items())
    }


def _returned(use: TableUse, shares: Shares) -> Float64:
    """Return the (T, R) numbers that one rank's ids give: rows of a sequence, or (partial) bags."""
    return np.where(use.pooled, use.vectors * shares.columns, use.ids * shares.width)


def _seconds_per_byte(ranks: RankGroup, topology: Topology) -> tuple[Float64, Float64, Float64]:
    """Return seconds per byte for three kinds of communication, (R,) each.

    They are an exchange with every other rank, the same where bags are summed on the way, and an all-reduce.
    """
    intra = 1.0 / topology.intra_host_bandwidth
    inter = 1.0 / topology.inter_host_bandwidth
    size = ranks.host_sizes
    hosts = ranks.count / ranks.host_sizes
    direct = (size - 1.0) * intra + (ranks.count - size) * inter
    summed = (size - 1.0) * hosts * intra + (hosts - 1.0) * inter
    reduced = 2.0 * ((size - 1.0) / size * intra + (hosts - 1.0) / (hosts * size) * inter)
    return direct, summed, reduced


def _sent_bytes(use: TableUse, shares: Shares, ranks: RankGroup, communication: CommunicationConfig) -> Float64:
    """Return the (T, R) bytes that a rank sends, with its requests and as an owner."""
    others = ranks.count - 1.0
    lengths = np.where(use.pooled, 4.0 * use.vectors * shares.blocks, 0.0)
    ids = _of_others(use.id_bytes * use.ids * shares.routed + lengths)
    returned = _returned(use, shares)
    # Gradients of bags that were summed on the way: to one rank of each other host, which forwards them to the ranks there.
    size = ranks.host_sizes
    gathered = returned.sum(axis=1, keepdims=True) / size - returned + returned * (size - 1.0) * ranks.count / size
    gradients = np.where(use.summed, gathered, _of_others(returned))
    sharded = ids + BYTES[communication.forward] * others * returned + BYTES[communication.backward] * gradients
    return np.where(use.replicated, 2.0 * others / ranks.count * 4.0 * shares.numbers, sharded)


def _of_others(values: Float64) -> Float64:
    total: Float64 = values.sum(axis=1, keepdims=True)
    return total - values


def _tiled(values: Float64, plan: Plan) -> Float64:
    """Repeat values for every group of replicas."""
    return np.tile(values, (1, plan.replica_groups, *[1] * (values.ndim - 2)))
