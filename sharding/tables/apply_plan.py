"""Shards the tables of any module by a plan, with their optimizers fused into the backward pass.

The order matters: tables on the meta device, in-backward optimizers attached, shard, initialise by key. The dense optimizers
follow and cover the other parameters (sharding.tables.optimizers).
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import ShardingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.optimizers import LAMB, PartialRowWiseAdam, PartialRowWiseLAMB
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from sharding.config import ROW_SPLITS, SUMMED_SPLITS, CommunicationConfig, SparseOptimizer, TableConfig
from sharding.errors import PlacementError
from sharding.plan import Plan
from sharding.support import codec_reason, unsupported_reason
from sharding.tables.communication import codecs_of
from sharding.tables.initialize import initialize_tables
from sharding.tables.pad_bags import pad_requests
from sharding.world import World

FP32 = CommunicationConfig()
Collection: TypeAlias = EmbeddingCollection | EmbeddingBagCollection


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder of bags, with splits by rows on CPUs, which TorchRec refuses although they work."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [sharding.value for sharding in ShardingType]


def shard_tables(
    module: nn.Module,
    tables: Mapping[str, TableConfig],
    plan: Plan,
    world: World,
    seed: int | None,
    communication: CommunicationConfig = FP32,
) -> DistributedModelParallel:
    """Shard the embedding collections of `module` over the ranks and initialise them; no seed leaves them undefined. Collective.

    A collection for sequences with data_parallel tables only stays unchanged and has to be on the ranks' device. All others can
    be on the meta device. Raises PlacementError if the plan is for another number of ranks, or if it is not supported.
    """
    if plan.world_size != world.world_size:
        raise PlacementError(f"the plan is for {plan.world_size} workers, and there are {world.world_size}")
    if plan.replica_groups > 1:
        raise PlacementError(
            "plan.replica_groups: replica groups can be planned but not trained yet; set plan.replica_groups = 1"
        )
    _refuse_other_hosts(plan)
    not_sent = codec_reason(communication, plan.device)
    if not_sent is not None:
        raise PlacementError(not_sent)
    torchrec_plan = ShardingPlan(plan={})
    for path, collection in _collections(module):
        pooled = isinstance(collection, EmbeddingBagCollection)
        names = [config.name for config in _configs_of(collection)]
        for name in names:
            _refuse_unsupported(name, plan, tables[name], collection)
        _refuse_wrong_means(collection, plan)
        copied = [name for name in names if plan.tables[name].sharding == "data_parallel"]
        if not pooled and copied:
            if len(copied) < len(names):
                raise PlacementError(
                    f"tables.{copied[0]}.sharding = data_parallel: not supported in one collection with sharded tables"
                )
            continue
        for name in names:
            if plan.tables[name].kernel != "dense":
                _fuse_optimizer(collection, name, tables[name])
        torchrec_plan.plan[path] = EmbeddingModuleShardingPlan(
            {name: _parameter_sharding(plan, name, tables[name]) for name in names}
        )
    sharded_model = DistributedModelParallel(
        module=module,
        device=world.device,
        plan=torchrec_plan,
        sharders=_sharders(codecs_of(communication, world.device)) if torchrec_plan.plan else [],
        # Dense gradients are summed by the trainer in buckets with a fixed layout: DDP rebuilds its
        # buckets after the first step, so a resumed run would add numbers in another order than the uninterrupted one.
        init_data_parallel=False,
    )
    if seed is not None:  # otherwise the caller loads all of them
        initialize_tables(sharded_model, seed, {name: config.init_std for name, config in tables.items()})
    for child in sharded_model.modules() if world.world_size > 1 else ():
        if isinstance(child, ShardedEmbeddingBagCollection):
            names = [config.name for config in child._embedding_bag_configs]
            if any(plan.tables[name].sharding in SUMMED_SPLITS for name in names):
                pad_requests(child, world)
    return sharded_model


def _collections(module: nn.Module) -> Iterator[tuple[str, Collection]]:
    for path, child in module.named_modules():
        if isinstance(child, EmbeddingCollection | EmbeddingBagCollection):
            yield path, child


def _configs_of(collection: Collection) -> list[Any]:
    pooled = isinstance(collection, EmbeddingBagCollection)
    return list(collection.embedding_bag_configs() if pooled else collection.embedding_configs())


def _refuse_other_hosts(plan: Plan) -> None:
    """Raise PlacementError if the plan is for another number of workers per host, where that matters.

    It matters for tables that are spread over one host, and for all tables on GPUs, which are numbered within a host.
    """
    there = get_local_size(plan.world_size)
    if there == plan.local_world_size:
        return
    for name, table in plan.tables.items():
        if table.sharding in ("table_row_wise", "grid_shard") or plan.device == "cuda":
            raise PlacementError(
                f"tables.{name}.sharding = {table.sharding}: planned for {plan.local_world_size} workers on each host, but there "
                f"are {there}; set plan.devices_per_host = {there}"
            )


def _refuse_unsupported(name: str, plan: Plan, config: TableConfig, collection: Collection) -> None:
    table = plan.tables[name]
    pooled = isinstance(collection, EmbeddingBagCollection)
    mean = pooled and any(c.name == name and c.pooling == PoolingType.MEAN for c in _configs_of(collection))
    reason = unsupported_reason(
        table.sharding,
        table.kernel,
        config.optimizer,
        pooled,
        plan.device,
        mean_pooling=mean,
        weight_decay=config.weight_decay,
    )
    if reason is not None:
        raise PlacementError(f"tables.{name}: {reason}")


def _refuse_wrong_means(collection: Collection, plan: Plan) -> None:
    """Raise PlacementError if TorchRec would compute wrong means.

    If it averages bags after summing rows of one table over several ranks, it divides all other bags too.
    """
    if isinstance(collection, EmbeddingCollection):
        return
    split = [config for config in _configs_of(collection) if plan.tables[config.name].sharding in ROW_SPLITS]
    whole = [config for config in _configs_of(collection) if plan.tables[config.name].sharding not in ROW_SPLITS]
    averaged = [config.name for config in split if config.pooling == PoolingType.MEAN]
    if averaged and whole:
        raise PlacementError(
            f"tables.{averaged[0]}.sharding = {plan.tables[averaged[0]].sharding}: averaged bags cannot be split by rows "
            f"together with tables that are not, such as {whole[0].name}; choose table_wise, or row_wise for all tables"
        )


def _weights_of(collection: Collection, table: str) -> list[nn.Parameter]:
    children = collection.embedding_bags if isinstance(collection, EmbeddingBagCollection) else collection.embeddings
    return list(children[table].parameters())


def _fuse_optimizer(collection: Collection, table: str, config: TableConfig) -> None:
    optimizers: dict[SparseOptimizer, type[torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rowwise_adagrad": RowWiseAdagrad,
        "adam": torch.optim.Adam,
        "lamb": LAMB,
        "partial_rowwise_adam": PartialRowWiseAdam,
        "partial_rowwise_lamb": PartialRowWiseLAMB,
    }
    settings: dict[str, float] = {"lr": config.learning_rate}
    if config.optimizer != "sgd":
        settings["eps"] = config.eps
    if config.weight_decay:
        settings["weight_decay"] = config.weight_decay
    apply_optimizer_in_backward(optimizers[config.optimizer], _weights_of(collection, table), settings)


def _sharders(codecs: dict[str, QuantizedCommCodecs] | None) -> list[ModuleSharder[nn.Module]]:
    # By default fbgemm ignores an optimizer's weight decay.
    fused = {"weight_decay_mode": WeightDecayMode.L2}
    return [EmbeddingCollectionSharder(fused, codecs), _BagSharder(fused, codecs)]  # type: ignore[list-item]


def _parameter_sharding(plan: Plan, table: str, config: TableConfig) -> ParameterSharding:
    shards = plan.shards(table)
    planned = plan.tables[table]
    spec = None
    if planned.sharding != "data_parallel":
        spec = EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_offsets=[shard.row, shard.column],
                    shard_sizes=[shard.num_rows, shard.num_columns],
                    placement=_placement(shard.rank, plan),
                )
                for shard in shards
            ]
        )
    return ParameterSharding(
        sharding_type=planned.sharding,
        compute_kernel=planned.kernel,
        ranks=[shard.rank for shard in shards],
        sharding_spec=spec,
        cache_params=CacheParams(load_factor=config.cache_load_factor) if config.cache_load_factor else None,
    )


def _placement(rank: int, plan: Plan) -> str:
    return f"rank:{rank}/cpu" if plan.device == "cpu" else f"rank:{rank}/cuda:{rank % plan.local_world_size}"
