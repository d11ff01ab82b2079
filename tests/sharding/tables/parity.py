"""Models of two tables for the parity matrix, trained on ranks and whole in one process, many combinations in one call."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.optim import Optimizer
from torchrec.distributed import comm
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.config import CommunicationConfig, Kernel, Sharding, SparseOptimizer, TableConfig
from sharding.plan import Plan, TablePlan
from sharding.tables.apply_plan import shard_tables
from sharding.tables.initialize import initialize_tables
from sharding.tables.optimizers import Optimizers, table_optimizer
from sharding.world import World

ROWS = {"wide": 41, "thin": 23}
FEATURES = {"wide": ["a", "b"], "thin": ["c"]}
FEATURE_ROWS = {feature: ROWS[table] for table, features in FEATURES.items() for feature in features}
FP32 = CommunicationConfig()
STEPS, NUM_BAGS, SEED, RATE = 5, 7, 7, 0.05


@dataclass(frozen=True)
class Combination:
    """Two tables with one optimizer, each with its sharding; pooled, or looked up per event."""

    pooled: bool
    wide: Sharding
    thin: Sharding
    optimizer: SparseOptimizer
    weight_decay: float = 0.0
    mean: bool | None = None
    communication: CommunicationConfig = FP32
    kernel: Kernel = "fused"

    @property
    def tables(self) -> dict[str, TableConfig]:
        settings: dict[str, Any] = {"optimizer": self.optimizer, "learning_rate": RATE, "eps": 1e-6}
        settings["weight_decay"] = self.weight_decay
        return {name: TableConfig(dim=dim, **settings) for name, dim in self.dims.items()}

    @property
    def dims(self) -> dict[str, int]:
        """An EmbeddingCollection has tables of one width."""
        return {"wide": 16, "thin": 8 if self.pooled else 16}

    @property
    def averages(self) -> bool:
        """True if bags of the thin table are averaged: unless set otherwise, wherever TorchRec computes that correctly."""
        return self.thin != "grid_shard" if self.mean is None else self.mean

    def plan(self, world_size: int, local_world_size: int, device: str = "cpu") -> Plan:
        tables = {
            name: self._table(name, sharding, world_size, local_world_size)
            for name, sharding in (("wide", self.wide), ("thin", self.thin))
        }
        return Plan(world_size, local_world_size, device, tables)

    def _table(self, name: str, sharding: Sharding, world_size: int, local_world_size: int) -> TablePlan:
        num_hosts, dim = world_size // local_world_size, self.dims[name]
        last = int(name == "thin")
        places: dict[str, tuple[int, ...]] = {
            "table_wise": (last * (world_size - 1),),
            "column_wise": tuple(range(min(world_size, dim // 4))),
            "table_column_wise": tuple(range(min(local_world_size, dim // 4))),
            "table_row_wise": (last * (num_hosts - 1),),
            "grid_shard": tuple(range(num_hosts)),
        }
        kernel: Kernel = "dense" if sharding == "data_parallel" else self.kernel
        return TablePlan(sharding, kernel, ROWS[name], dim, places.get(sharding, ()))


def kernel_of(sharding: Sharding) -> Kernel:
    return "dense" if sharding == "data_parallel" else "fused"


class Model(nn.Module):
    """Rows or bags of both tables through a dense layer to a loss that is a sum over examples."""

    def __init__(self, combination: Combination, device: torch.device) -> None:
        super().__init__()
        self.pooled = combination.pooled
        dims = combination.dims
        if self.pooled:
            bags = [
                EmbeddingBagConfig(
                    ROWS[n],
                    dims[n],
                    name=n,
                    feature_names=FEATURES[n],
                    pooling=PoolingType.MEAN if n == "thin" and combination.averages else PoolingType.SUM,
                )
                for n in ROWS
            ]
            self.tables: nn.Module = EmbeddingBagCollection(bags, device=device)
        else:
            rows = [EmbeddingConfig(ROWS[n], dims[n], name=n, feature_names=FEATURES[n]) for n in ROWS]
            self.tables = EmbeddingCollection(rows, device=device)
        self.dense = nn.Linear(2 * dims["wide"] + dims["thin"] if self.pooled else dims["wide"], 3)
        with torch.no_grad():
            self.dense.weight.copy_(torch.linspace(-0.5, 0.5, self.dense.weight.numel()).view_as(self.dense.weight))
            self.dense.bias.zero_()

    def forward(self, request: KeyedJaggedTensor, num_bags: int) -> Tensor:
        """Return the loss. Bags from num_bags on exist only so that all ranks have equally many."""
        result = self.tables(request)
        # Always by key: the values of a KeyedTensor are in the order of the plan.
        keys = ("a", "b", "c")
        if self.pooled:
            vectors = torch.cat([result[key] for key in keys], dim=1)[:num_bags]
        else:
            vectors = torch.cat([result[key].values() for key in keys])
        loss: Tensor = (self.dense(vectors).sigmoid() ** 2).sum()
        return loss


def request_of(step: int, rank: int, world_size: int) -> tuple[KeyedJaggedTensor, int]:
    """Return a rank's bags of each feature, and how many they are: every world_size-th of the global batch, then empty ones."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(0, 6, (len(FEATURE_ROWS), NUM_BAGS), generator=generator)
    mine = []
    for of_feature, num_rows in zip(lengths.tolist(), FEATURE_ROWS.values(), strict=True):
        bags = torch.randint(0, num_rows, (sum(of_feature),), generator=generator).split(of_feature)[rank::world_size]
        padding = -(-NUM_BAGS // world_size) - len(bags)
        mine += [*bags, *[torch.zeros(0, dtype=torch.int64)] * padding]
    request = KeyedJaggedTensor(
        list(FEATURE_ROWS), torch.cat(mine), lengths=torch.tensor([bag.numel() for bag in mine])
    )
    return request, len(range(rank, NUM_BAGS, world_size))


def train_sharded(world: World, combinations: list[Combination], local_world_size: int) -> dict[Combination, Any]:
    """Train each combination; return its tables (before, after) on the first rank, or the error that it raised."""
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = str(local_world_size)
    comm._INTRA_PG = comm._CROSS_PG = None  # of the process group of an earlier call
    try:
        return {c: _train_one(world, c, local_world_size) for c in combinations}
    finally:
        comm._INTRA_PG = comm._CROSS_PG = None
        del os.environ["LOCAL_WORLD_SIZE"]


def _train_one(world: World, combination: Combination, local_world_size: int) -> tuple[dict[str, Tensor], ...]:
    plan = combination.plan(world.world_size, local_world_size, world.device.type)
    copied = combination.wide == combination.thin == "data_parallel" and not combination.pooled
    model = Model(combination, world.device if copied else torch.device("meta"))
    model.dense.to(world.device)
    sharded_model = shard_tables(model, combination.tables, plan, world, SEED, combination.communication)
    optimizers = Optimizers(sharded_model, lambda p: torch.optim.SGD(p, lr=RATE), combination.tables, plan)
    before = whole_tables(sharded_model)
    for step in range(STEPS):
        optimizers.set_rate_factor(1.0 - 0.1 * step)
        request, num_bags = request_of(step, world.rank, world.world_size)
        model(request.to(world.device), num_bags).backward()
        for parameter in (*optimizers.dense_parameters, *optimizers.copied_parameters):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            world.sum(parameter.grad)
        optimizers.step_dense()
    return before, whole_tables(sharded_model)


def train_whole(
    combination: Combination, build: Callable[[list[Tensor], TableConfig], Optimizer] = table_optimizer
) -> tuple[dict[str, Tensor], ...]:
    """Train the same model in one process with plain optimizers; `build` makes that of a table."""
    model = Model(combination, torch.device("cpu"))
    initialize_tables(model, SEED, {name: config.init_std for name, config in combination.tables.items()})
    weights = {name: dict(model.named_parameters())[_path(combination, name)] for name in ROWS}
    plain = {name: config.model_copy(update={"weight_decay": 0.0}) for name, config in combination.tables.items()}
    optimizers = [build([weights[name]], plain[name]) for name in ROWS]
    optimizers.append(torch.optim.SGD(model.dense.parameters(), lr=RATE))
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for step in range(STEPS):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = RATE * (1.0 - 0.1 * step)
        request, num_bags = request_of(step, 0, 1)
        model(request, num_bags).backward()
        for name, weight in weights.items() if combination.weight_decay else ():
            # Decay is of the rows that a step updates, and of no others.
            touched = torch.cat([request[feature].values() for feature in FEATURES[name]]).unique()
            weight.grad[touched] += combination.weight_decay * weight.detach()[touched]  # type: ignore[index]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return before, {name: weight.detach() for name, weight in weights.items()}


def _path(combination: Combination, table: str) -> str:
    return f"tables.{'embedding_bags' if combination.pooled else 'embeddings'}.{table}.weight"


def whole_tables(sharded_model: nn.Module) -> dict[str, Tensor]:
    """Return the tables by name, whole on the first rank and empty on others. Collective."""
    whole = {}
    for name, value in sharded_model.state_dict().items():
        table = name.split(".")[-2]
        if table in ROWS:
            if isinstance(value, ShardedTensor):
                device = value.local_shards()[0].tensor.device if value.local_shards() else torch.device("cpu")
                out = torch.zeros(value.size(), device=device) if torch.distributed.get_rank() == 0 else None
                value.gather(0, out)
                whole[table] = torch.zeros(0) if out is None else out.cpu()
            else:
                whole[table] = torch.as_tensor(value).detach().cpu().clone()
    return whole
