"""The cost model: bytes and seconds of every table on every rank, as formulas. Imports no torch.

W ranks (of one group, where groups hold replicas), L of them on the host of a rank, H = W / L. A rank looks up n ids of a table
in a step and gets v vectors of d numbers: v = n for a sequence; for a pooled table v bags. Of a table, a rank holds x numbers in
y rows; q of the n ids of every rank are routed to it (1/W if row_wise, 1 for every column block), w numbers are read for an id
on average, and its shards are c columns wide. f, b: bytes of a number on its way forward and back. C is a constant of
CostConstants; all else follows from plan and topology. Ids are taken to be spread evenly over rows, and all ranks to look up
equally much.

memory      4x + 4(k x + j y), k numbers of optimizer state per number and j per row; 4x more for the gradient of a dense kernel.
            Buffers: 8 W n q for ids, 2 * 4 W o for what is read and its gradient, where o = n w (sequence) or v c (pooled); on
            every rank 8 n + 2 * 4 v d. fused_uvm: weights and state in host memory; fused_uvm_caching, key_value: also, but
            cache_load_factor of the weights in device memory, and 4 bytes for each row (the cache's index).
input       C.network * (8 n q + 4 v a) * peers + C.seconds_per_input_id * W n q. a: shards of a pooled table, each with lengths of
            its own. In place of 8 bytes it is 12 for ids that have weights, here and in memory.
lookup      C.lookup_read * 4 W n w / device_bandwidth + C.lookup_write * 4 W o / device_bandwidth
            + C.seconds_per_lookup_id * W n q. Rows in host memory: C.host_access * 4 W n w / host_bandwidth, times the part that
            misses the cache, 1 - cache_load_factor.
output      C.network * f o * peers + C.copy * 4 v d / device_bandwidth
gradient    the same with b
update      C.update_rows * 2 * 4 W n (w + k w + j q) / device_bandwidth + C.update_gradients * 4 W o / device_bandwidth
            + C.seconds_per_update_id * W n q; C.host_access as in lookup, for reading and for writing.

peers = (L - 1) / intra_host_bandwidth + (W - L) / inter_host_bandwidth: an owner exchanges the same with every other rank. Only
the owner's side is counted: all ranks ask for equally much, so what a rank has to do as the one who asks is the mean over all
ranks of what it has to do as an owner, which the busiest owner exceeds. Bags of which several ranks hold a part (row_wise,
table_row_wise, grid_shard) are summed on the way, within hosts first: peers = (L - 1) H / intra + (H - 1) / inter.

data_parallel: looked up where it is asked for (W is 1 in lookup and update), nothing sent but the dense gradient, in fp32:
C.network * 2 * 4x ((L - 1) / L / intra + (H - 1) / (H L) / inter). A dense kernel's update moves the whole shard,
2 * 4x (1 + k) + 2 * 4 j y, and its gradient three times (zeroed, added to, read), 3 * 4x.

To this comes C.latency * latency_seconds for each collective: 3 in input (sizes, lengths, ids), 1 in output and in gradient, 2 each
where bags are summed within a host and then sent on; for data_parallel 1 in gradient. Tables of one sharding share them, each has
an equal part. None on one rank.

Not counted: overlap with the dense part, duplicate ids (each is read and updated), skewed ids, the syncing of replica groups.
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
# Numbers of state per weight, and per row.
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
COLLECTIVE_PHASES = frozenset({"input", "output", "gradient"})


Features = dict[str, tuple[Float64, tuple[str, ...]]]


def predict(
    plan: Plan,
    loads: Sequence[TableLoad],
    topology: Topology,
    communication: CommunicationConfig = FP32,
) -> Prediction:
    """What `plan` will cost with `loads`, whoever made it. Tables in the order of the plan; a load for each of them."""
    tables, asked, shares, ranks = _of_plan(plan, loads, topology)
    constants = topology.costs
    seconds = {
        f"{phase}_seconds": _tiled(features @ np.array([getattr(constants, name) for name in names]), plan)
        for phase, (features, names) in _with_latency(tables, asked, shares, ranks, topology, communication).items()
    }
    device_bytes, host_bytes = memory(asked, shares, ranks)
    return Prediction(
        tables=tuple(plan.tables),
        memory_bytes=_tiled(device_bytes, plan),
        host_memory_bytes=_tiled(host_bytes, plan),
        sent_bytes=_tiled(_sent_bytes(asked, shares, ranks, communication), plan),
        **seconds,
    )


def phase_features(
    plan: Plan,
    loads: Sequence[TableLoad],
    topology: Topology,
    communication: CommunicationConfig = FP32,
) -> Features:
    """For each phase (T, W, k) features and the k names of the CostConstants that they are multiplied with: their product is
    that phase of `predict`. Seconds for factors, counts for seconds_per_...
    """
    tables, asked, shares, ranks = _of_plan(plan, loads, topology)
    features = _with_latency(tables, asked, shares, ranks, topology, communication)
    return {phase: (_tiled(values, plan), names) for phase, (values, names) in features.items()}


@dataclass(frozen=True)
class Asked:
    """What is asked of tables, and how they are held: (T, 1), to be set against (T, R) shares."""

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


def asked_of(tables: Sequence[TablePlan], loads: Sequence[TableLoad]) -> Asked:
    def column(values: Iterable[float]) -> Float64:
        return np.array(list(values), dtype=np.float64)[:, None]

    pooled = column(load.pooled for load in loads) > 0
    return Asked(
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
class Ranks:
    """Ranks that share tables. count: of them; host_sizes: (R,) how many lie on the host of each of those looked at."""

    count: int
    host_sizes: Float64


def ranks_of(num_ranks: int, ranks_per_host: int, looked_at: NDArray[np.int64] | None = None) -> Ranks:
    hosts = np.arange(num_ranks) // ranks_per_host
    sizes = np.bincount(hosts)[hosts].astype(np.float64)
    return Ranks(num_ranks, sizes if looked_at is None else sizes[looked_at])


def features(
    asked: Asked, shares: Shares, ranks: Ranks, topology: Topology, communication: CommunicationConfig
) -> Features:
    """(T, R, k) features of the formulas above, those of latency aside."""
    sources = np.where(asked.replicated, 1.0, ranks.count)
    ids = sources * asked.ids * shares.routed
    read = 4.0 * sources * asked.ids * shares.width / topology.device_bandwidth
    returned = 4.0 * sources * _returned(asked, shares) / topology.device_bandwidth
    missed = np.where(asked.in_host, 1.0 - asked.cached, 0.0)
    from_host = missed * 4.0 * sources * asked.ids * shares.width / topology.host_bandwidth
    state = asked.state_per_number * shares.width + asked.state_per_row * shares.routed
    moved = 4.0 * 2.0 * sources * asked.ids * (shares.width + state)
    moved_densely = 4.0 * (
        (2.0 * (1.0 + asked.state_per_number) + 3.0) * shares.numbers + 2.0 * asked.state_per_row * shares.rows
    )
    updated = np.where(asked.dense, moved_densely, moved) / topology.device_bandwidth
    arriving = np.where(asked.replicated, 0.0, 4.0 * asked.vectors * asked.dim / topology.device_bandwidth)
    direct, summed, reduced = _seconds_per_byte(ranks, topology)
    back = np.where(asked.summed, summed, direct) * _returned(asked, shares)
    lengths = np.where(asked.pooled, 4.0 * asked.vectors * shares.blocks, 0.0)
    exchanged = ~asked.replicated
    there = exchanged * direct * (asked.id_bytes * asked.ids * shares.routed + lengths)
    all_reduced = asked.replicated * reduced * 4.0 * shares.numbers
    forward, backward = BYTES[communication.forward], BYTES[communication.backward]
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


def memory(asked: Asked, shares: Shares, ranks: Ranks) -> tuple[Float64, Float64]:
    """(T, R) bytes in device memory, and outside of it."""
    weights, optimizer = stored_bytes(asked, shares)
    gradients = np.where(asked.dense, weights, 0.0)
    index = np.where(asked.cached > 0.0, 4.0 * shares.rows, 0.0)
    on_device = np.where(asked.in_host, asked.cached * weights + index, weights + optimizer) + gradients
    buffers = ranks.count * (asked.id_bytes * asked.ids * shares.routed + 2.0 * 4.0 * _returned(asked, shares))
    own = asked.id_bytes * asked.ids + 2.0 * 4.0 * asked.vectors * asked.dim
    on_device += np.where(asked.replicated, 0.0, buffers) + own
    return on_device, np.where(asked.in_host, weights + optimizer, 0.0)


def stored_bytes(asked: Asked, shares: Shares) -> tuple[Float64, Float64]:
    """(T, R) bytes of weights and of optimizer state, wherever they lie."""
    return 4.0 * shares.numbers, 4.0 * (asked.state_per_number * shares.numbers + asked.state_per_row * shares.rows)


def collectives(sharding: Sharding, pooled: bool) -> tuple[int, int, int, int, int]:
    """Collective operations in each phase, which all tables of one kind (`collective_kind`) share."""
    if sharding == "data_parallel":
        return 0, 0, 0, 1, 0
    stages = 2 if pooled and sharding in ("table_row_wise", "grid_shard") else 1
    return 3, 0, stages, stages, 0


def collective_kind(sharding: Sharding, pooled: bool) -> tuple[Sharding, bool]:
    return sharding, pooled and sharding != "data_parallel"


def _of_plan(
    plan: Plan, loads: Sequence[TableLoad], topology: Topology
) -> tuple[list[tuple[TablePlan, TableLoad]], Asked, Shares, Ranks]:
    by_name = {load.name: load for load in loads}
    tables = [(table, by_name[name]) for name, table in plan.tables.items()]
    num_ranks = plan.world_size // plan.replica_groups
    ranks_per_host = min(plan.local_world_size, num_ranks)
    return (
        tables,
        asked_of([table for table, _ in tables], [load for _, load in tables]),
        shares_of([table for table, _ in tables], num_ranks, ranks_per_host),
        ranks_of(num_ranks, ranks_per_host),
    )


def _with_latency(
    tables: Sequence[tuple[TablePlan, TableLoad]],
    asked: Asked,
    shares: Shares,
    ranks: Ranks,
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
        for n, (phase, (values, names)) in enumerate(features(asked, shares, ranks, topology, communication).items())
    }


def _returned(asked: Asked, shares: Shares) -> Float64:
    """(T, R) numbers that one rank's ids give: rows of a sequence, or (partial) bags."""
    return np.where(asked.pooled, asked.vectors * shares.columns, asked.ids * shares.width)


def _seconds_per_byte(ranks: Ranks, topology: Topology) -> tuple[Float64, Float64, Float64]:
    """(R,) what it takes to exchange a byte with every other rank; the same where bags are summed on the way; and to all-reduce
    one byte."""
    intra, inter = 1.0 / topology.intra_host_bandwidth, 1.0 / topology.inter_host_bandwidth
    size, hosts = ranks.host_sizes, ranks.count / ranks.host_sizes
    direct = (size - 1.0) * intra + (ranks.count - size) * inter
    summed = (size - 1.0) * hosts * intra + (hosts - 1.0) * inter
    reduced = 2.0 * ((size - 1.0) / size * intra + (hosts - 1.0) / (hosts * size) * inter)
    return direct, summed, reduced


def _sent_bytes(asked: Asked, shares: Shares, ranks: Ranks, communication: CommunicationConfig) -> Float64:
    """(T, R) what a rank sends, as the one who asks and as an owner."""
    others = ranks.count - 1.0
    lengths = np.where(asked.pooled, 4.0 * asked.vectors * shares.blocks, 0.0)
    ids = _of_others(asked.id_bytes * asked.ids * shares.routed + lengths)
    returned = _returned(asked, shares)
    # Gradients of bags that were summed on the way: to one rank of each other host, which hands all it got to those there.
    size = ranks.host_sizes
    gathered = returned.sum(axis=1, keepdims=True) / size - returned + returned * (size - 1.0) * ranks.count / size
    gradients = np.where(asked.summed, gathered, _of_others(returned))
    sharded = ids + BYTES[communication.forward] * others * returned + BYTES[communication.backward] * gradients
    return np.where(asked.replicated, 2.0 * others / ranks.count * 4.0 * shares.numbers, sharded)


def _of_others(values: Float64) -> Float64:
    total: Float64 = values.sum(axis=1, keepdims=True)
    return total - values


def _tiled(values: Float64, plan: Plan) -> Float64:
    """The same for every group of replicas."""
    return np.tile(values, (1, plan.replica_groups, *[1] * (values.ndim - 2)))
