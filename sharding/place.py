"""Plan and shard the tables of any module, with their optimizers fused into the backward pass.

The wiring order matters: tables on the meta device, in-backward optimizers attached, plan, shard, initialise by key; the
dense optimizer comes later and covers what is left (sharding.optimizers).
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from sharding.config import TableConfig
from sharding.errors import PlacementError
from sharding.initialize import initialize_tables
from sharding.ranks import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """A module whose tables lie where the plan says. `plan`: JSON-ready description, also saved with checkpoints."""

    module: DistributedModelParallel
    plan: dict[str, Any]


def tables_device(tables: dict[str, TableConfig], device: torch.device) -> torch.device:
    """Where to build the tables before `place`: on the meta device, unless all are replicated and stay as they are."""
    return device if all(table.sharding == "replicated" for table in tables.values()) else torch.device("meta")


def place(module: nn.Module, tables: dict[str, TableConfig], ranks: Ranks, seed: int) -> Placement:
    """Shard the EmbeddingCollections of `module` over the ranks and initialise them. Collective.

    Raises PlacementError if a table cannot be placed as configured.
    """
    sharded = {name: config for name, config in tables.items() if config.sharding != "replicated"}
    if sharded and len(sharded) < len(tables):
        raise PlacementError(
            f"tables.{next(iter(tables.keys() - sharded.keys()))}.sharding: replicated and sharded tables of one collection "
            "cannot be mixed; replicate all of them or none"
        )
    for collection in _collections(module):
        for name, config in sharded.items():
            if config.sharding == "row_wise":
                _refuse_empty_shards(name, collection.embeddings[name].weight.shape[0], ranks.world_size)
            _fuse_optimizer(collection, name, config)
    plan = _plan(module, sharded, ranks) if sharded else ShardingPlan(plan={})
    placed = DistributedModelParallel(
        module=module,
        device=ranks.device,
        plan=plan,
        sharders=_sharders() if sharded else [],
        # Dense gradients are summed by the trainer in one flat tensor whose layout never changes: DDP rebuilds its
        # buckets after the first step, so a resumed run would add numbers in another order than the uninterrupted one.
        init_data_parallel=False,
    )
    initialize_tables(placed, seed, {name: config.init_std for name, config in tables.items()})
    return Placement(placed, describe_plan(plan, tables, ranks))


def _collections(module: nn.Module) -> list[EmbeddingCollection]:
    return [child for child in module.modules() if isinstance(child, EmbeddingCollection)]


def _refuse_empty_shards(table: str, num_rows: int, world_size: int) -> None:
    """TorchRec gives each rank ceil(rows / ranks) rows; fbgemm has no kernel for a last rank that is left without any."""
    if (world_size - 1) * -(-num_rows // world_size) >= num_rows:
        raise PlacementError(
            f"tables.{table}.sharding = row_wise: the table's {num_rows} rows would leave one of {world_size} workers without "
            "any; set it to table_wise or replicated, or lower cluster.num_workers"
        )


def _fuse_optimizer(collection: EmbeddingCollection, table: str, config: TableConfig) -> None:
    parameters = collection.embeddings[table].parameters()
    match config.optimizer:
        case "sgd":
            apply_optimizer_in_backward(torch.optim.SGD, parameters, {"lr": config.learning_rate})
        case "adagrad":
            apply_optimizer_in_backward(
                torch.optim.Adagrad, parameters, {"lr": config.learning_rate, "eps": config.eps}
            )
        case "rowwise_adagrad":
            apply_optimizer_in_backward(RowWiseAdagrad, parameters, {"lr": config.learning_rate, "eps": config.eps})


def _sharders() -> list[ModuleSharder[nn.Module]]:
    return [EmbeddingCollectionSharder()]  # type: ignore[list-item]


def _plan(module: nn.Module, tables: dict[str, TableConfig], ranks: Ranks) -> ShardingPlan:
    constraints = {
        name: ParameterConstraints(
            sharding_types=[config.sharding],
            compute_kernels=[EmbeddingComputeKernel.FUSED.value],
            min_partition=max(4, config.dim // ranks.world_size) if config.sharding == "column_wise" else None,
        )
        for name, config in tables.items()
    }
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks.world_size, compute_device=ranks.device.type),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
        stats=[],  # the page of statistics belongs to `shoal plan`, not between the lines of a training log
    )
    group = dist.group.WORLD
    assert group is not None
    try:
        plan: ShardingPlan = planner.collective_plan(module, _sharders(), group)
    except PlannerError as error:
        names = ", ".join(f"tables.{name}.sharding = {config.sharding}" for name, config in tables.items())
        raise PlacementError(f"no plan for {ranks.world_size} workers satisfies {names}: {error}") from None
    return plan


def describe_plan(plan: ShardingPlan, tables: dict[str, TableConfig], ranks: Ranks) -> dict[str, Any]:
    """The plan in plain values: per table its sharding, kernel and shards (rank, first row, first column, rows, columns)."""
    described: dict[str, Any] = {
        name: {"sharding": "replicated"} for name, c in tables.items() if c.sharding == "replicated"
    }
    for module_plan in plan.plan.values():
        for name, parameter in module_plan.items():  # type: ignore[attr-defined]
            shards = parameter.sharding_spec.shards if parameter.sharding_spec is not None else []
            described[name] = {
                "sharding": parameter.sharding_type,
                "kernel": parameter.compute_kernel,
                "shards": [
                    {"rank": s.placement.rank(), "offsets": list(s.shard_offsets), "sizes": list(s.shard_sizes)}
                    for s in shards
                ],
            }
    description = {"world_size": ranks.world_size, "device": ranks.device.type, "tables": described}
    json.dumps(description)  # plain values only: it goes into plan.json and every checkpoint
    return description
