"""TorchRec's own planner on the same question: the same tables, constraints, devices, costs and goal, another search.

To measure our search against (benchmarks.planning): runs are planned by sharding.planning.planner. Tables are on the meta device,
so no memory and no GPU is needed. Two differences remain. TorchRec cuts all columns of a table into blocks of one width, the
least that is allowed, where ours tries every number of blocks. Latency that tables share is no cost of a shard, so its greedy
search does not see it; the rating of whole plans does.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner import Topology as TorchRecTopology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    Perf,
    PerfModel,
    PlannerError,
    ShardEstimator,
    ShardingOption,
    Storage,
)
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from sharding.config import CommunicationConfig
from sharding.errors import PlacementError
from sharding.plan import Plan, TablePlan
from sharding.planning.costs import FP32, PHASES, predict
from sharding.planning.load import TableLoad
from sharding.planning.options import COLUMN_BLOCKS, HOSTED, MIN_PARTITION, options_of, with_costs
from sharding.planning.topology import Topology


def torchrec_plan(
    loads: Sequence[TableLoad],
    topology: Topology,
    communication: CommunicationConfig = FP32,
    timeout_seconds: int | None = None,
) -> Plan:
    """Return the best plan that TorchRec finds, within about timeout_seconds if given. Host memory is not used.

    Raises PlacementError if it finds none.
    """
    planner = _planner(loads, topology, communication, timeout_seconds)
    try:
        found = planner.plan(_meta_module(loads), [_Bags(), _Sequences()])  # type: ignore[list-item]
    except PlannerError as error:
        raise PlacementError(f"TorchRec's planner finds no plan: {error}") from None
    by_name = {load.name: load for load in loads}
    tables = {
        name: _table(by_name[name], parameter.sharding_type, parameter.compute_kernel, parameter.ranks, topology)
        for module in found.plan.values()
        for name, parameter in module.items()
    }
    return _plan({load.name: tables[load.name] for load in loads}, topology)


def _planner(
    loads: Sequence[TableLoad], topology: Topology, communication: CommunicationConfig, timeout_seconds: int | None
) -> EmbeddingShardingPlanner:
    by_name = {load.name: load for load in loads}
    constraints = {load.name: _constraints(load, topology, communication) for load in loads}
    asking = sum(options_of(load, topology, communication)[0].asking_bytes for load in loads)
    room = max(0, int(topology.capacity_bytes - asking))
    devices = TorchRecTopology(
        world_size=topology.num_devices,
        compute_device=topology.device,
        hbm_cap=room if topology.device == "cuda" else 0,
        ddr_cap=0 if topology.device == "cuda" else room,
        local_world_size=topology.devices_per_host,
    )
    costs = _OurCosts(devices, constraints)
    costs.ask(by_name, topology, communication)
    rating = _OurGoal()
    rating.ask(by_name, topology, communication)
    return EmbeddingShardingPlanner(
        topology=devices,
        enumerator=EmbeddingEnumerator(devices, batch_size=1, constraints=constraints, estimator=costs),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        performance_model=rating,
        constraints=constraints,
        stats=[],
        debug=False,
        timeout_seconds=timeout_seconds,
    )


def _constraints(load: TableLoad, topology: Topology, communication: CommunicationConfig) -> ParameterConstraints:
    options = [o for o in options_of(load, topology, communication) if not o.is_last_resort]
    return ParameterConstraints(
        sharding_types=sorted({option.table.sharding for option in options}),
        compute_kernels=sorted({option.table.kernel for option in options}),
        min_partition=load.min_partition or MIN_PARTITION[topology.device],
    )


class _OurCosts(ShardEstimator):
    """Fills a shard's time and storage from our cost model."""

    def __init__(self, topology: TorchRecTopology, constraints: dict[str, ParameterConstraints] | None = None) -> None:
        """Store the arguments that the base class requires."""

    def ask(self, loads: dict[str, TableLoad], topology: Topology, communication: CommunicationConfig) -> None:
        self._loads, self._topology, self._communication = loads, topology, communication

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any = None) -> None:
        for option in sharding_options:
            load = self._loads[option.name]
            table = _canonical(option, load, self._topology)
            (cost,) = with_costs([table], load, self._topology, self._communication)
            # Receiving rows takes every rank equally long, whatever the sharding, but for copies: for them it is a gain.
            seconds = dict(zip(PHASES, cost.block_seconds.tolist(), strict=True))
            if table.sharding == "data_parallel":
                sharded = replace(table, sharding="table_wise", kernel="fused", places=(0,))
                (other,) = with_costs([sharded], load, self._topology, self._communication)
                seconds["gradient"] -= float(other.all_seconds.sum())
            for shard in option.shards:
                shard.perf = _perf(seconds)
                shard.storage = _storage(cost.block_bytes, cost.host_bytes, self._topology)


class _OurGoal(PerfModel):
    """Rates a whole plan by its step_seconds."""

    def ask(self, loads: dict[str, TableLoad], topology: Topology, communication: CommunicationConfig) -> None:
        self._loads, self._topology, self._communication = loads, topology, communication

    def rate(self, plan: list[ShardingOption]) -> float:
        tables = {
            option.name: _table(
                self._loads[option.name],
                option.sharding_type,
                option.compute_kernel,
                [shard.rank for shard in option.shards],
                self._topology,
            )
            for option in plan
        }
        loads = [self._loads[name] for name in tables]
        return predict(_plan(tables, self._topology), loads, self._topology, self._communication).step_seconds


def _canonical(option: ShardingOption, load: TableLoad, topology: Topology) -> TablePlan:
    """Return the option with its blocks on the first ranks."""
    world = list(range(topology.num_devices)) * 2
    return _table(load, option.sharding_type, option.compute_kernel, world[: len(option.shards)], topology)


def _table(load: TableLoad, sharding: Any, kernel: Any, world: Sequence[Any], topology: Topology) -> TablePlan:
    if sharding in HOSTED:
        places = tuple(int(rank) // topology.devices_per_host for rank in world[:: topology.devices_per_host])
    elif sharding in COLUMN_BLOCKS | {"table_wise"}:
        places = tuple(int(rank) for rank in world)
    else:
        places = ()
    return TablePlan(sharding, kernel, load.num_rows, load.dim, places)


def _plan(tables: dict[str, TablePlan], topology: Topology) -> Plan:
    return Plan(topology.num_devices, topology.devices_per_host, topology.device, tables)


def _perf(seconds: dict[str, float]) -> Perf:
    return Perf(
        fwd_compute=seconds["lookup"],
        fwd_comms=seconds["input"] + seconds["output"],
        bwd_compute=seconds["update"],
        bwd_comms=seconds["gradient"],
    )


def _storage(device_bytes: float, host_bytes: float, topology: Topology) -> Storage:
    used = int(device_bytes) + 1
    return Storage(hbm=used, ddr=int(host_bytes)) if topology.device == "cuda" else Storage(hbm=0, ddr=used)


class _Bags(EmbeddingBagCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [sharding.value for sharding in ShardingType]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return _kernels(sharding_type)


class _Sequences(EmbeddingCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [sharding.value for sharding in ShardingType]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return _kernels(sharding_type)


def _kernels(sharding_type: str) -> list[str]:
    copied = sharding_type == ShardingType.DATA_PARALLEL.value
    return [EmbeddingComputeKernel.DENSE.value if copied else EmbeddingComputeKernel.FUSED.value]


def _meta_module(loads: Sequence[TableLoad]) -> nn.Module:
    """Return one collection of pooled tables, and one of sequences per width, as TorchRec requires."""
    meta = torch.device("meta")
    by_width: dict[int, list[EmbeddingConfig]] = defaultdict(list)
    for load in loads:
        if not load.pooled:
            by_width[load.dim].append(
                EmbeddingConfig(load.num_rows, load.dim, name=load.name, feature_names=[load.name])
            )
    modules: dict[str, nn.Module] = {
        f"sequences_{dim}": EmbeddingCollection(configs, device=meta) for dim, configs in by_width.items()
    }
    bags = [
        EmbeddingBagConfig(load.num_rows, load.dim, name=load.name, feature_names=[load.name])
        for load in loads
        if load.pooled
    ]
    if bags:
        modules["bags"] = EmbeddingBagCollection(bags, device=meta)
    return nn.ModuleDict(modules)
