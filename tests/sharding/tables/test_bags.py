"""Tables of rows and of bags in one model, sharded by one plan: trained as one process trains it that looks up every row.

Ranks have unequally many owners of everything, some of them none.
"""

import os

import pytest
import torch
from torch import Tensor
from torchrec.distributed import comm
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.config import Sharding, SparseOptimizer, TableConfig
from sharding.plan import Plan, TablePlan
from sharding.support import POOLED_SHARDINGS
from sharding.tables.apply_plan import shard_tables
from sharding.tables.initialize import initialize_tables
from sharding.tables.optimizers import Optimizers, table_optimizer
from sharding.tables.pad_bags import pad_to_longest
from sharding.world import World
from tests.models.features.tagged import DIMS, ROWS, Shape, Tagged, catalogue, request_of
from tests.sharding.tables.parity import kernel_of

WORLDS = {1: 1, 2: 2, 4: 2}  # ranks: ranks on each host
STEPS, SEED, STD, RATE = 3, 7, 0.3, 0.02
# One kind for all pooled tables, and two mixtures.
SHARDINGS: list[tuple[Sharding, ...]] = [
    *((s, s, s) for s in POOLED_SHARDINGS),
    ("row_wise", "table_wise", "data_parallel"),
    ("grid_shard", "row_wise", "column_wise"),
]
CASES: list[tuple[tuple[Sharding, ...], str, SparseOptimizer]] = [
    *((shardings, "mean", "adagrad") for shardings in SHARDINGS),
    (("row_wise",) * 3, "sum", "sgd"),
    (SHARDINGS[-1], "sum", "sgd"),
]


def shape_of(step: int, rank: int) -> Shape:
    """Return the sizes of a rank's batch: the first rank has nothing in one step, others have no users."""
    if rank == 0 and step == 1:
        return Shape(0, 0, 0, 1)
    return Shape((3 * rank + 5 + step) % 8 + 1, (rank + step) % 4, (2 * rank + 3) % 5, 10 * step + rank + 2)


def configs(optimizer: SparseOptimizer) -> dict[str, TableConfig]:
    return {
        name: TableConfig(dim=dim, optimizer=optimizer, learning_rate=RATE, eps=1e-3, init_std=STD)
        for name, dim in DIMS.items()
    }


def plan_of(shardings: tuple[Sharding, ...], world_size: int, local_world_size: int) -> Plan:
    hosts = world_size // local_world_size

    def table(name: str, sharding: Sharding) -> TablePlan:
        places: dict[str, tuple[int, ...]] = {
            "table_wise": (world_size - 1,),
            "column_wise": tuple(range(min(world_size, DIMS[name] // 4))),
            "table_column_wise": tuple(range(min(local_world_size, DIMS[name] // 4))),
            "table_row_wise": (hosts - 1,),
            "grid_shard": tuple(range(hosts)),
        }
        return TablePlan(sharding, kernel_of(sharding), ROWS[name], DIMS[name], places.get(sharding, ()))

    chosen: dict[str, Sharding] = dict(zip(("label", "shop", "city"), shardings, strict=True))
    return Plan(
        world_size,
        local_world_size,
        "cpu",
        {name: table(name, chosen.get(name, "row_wise")) for name in ROWS},
    )


def train_sharded(world: World, cases: list, local_world_size: int) -> list[tuple[dict[str, Tensor], float]]:
    """Train each case; return all tables as the first rank sees them, and the loss of the last step on all ranks."""
    os.environ["LOCAL_WORLD_SIZE"] = str(local_world_size)
    comm._INTRA_PG = comm._CROSS_PG = None  # of the process group of an earlier call
    try:
        return [_train_one(world, *case, local_world_size) for case in cases]
    finally:
        comm._INTRA_PG = comm._CROSS_PG = None
        del os.environ["LOCAL_WORLD_SIZE"]


def _train_one(world, shardings, pooling, optimizer, local_world_size):
    known = catalogue(True, pooling)
    model = Tagged(known, torch.device("meta"))
    plan = plan_of(shardings, world.world_size, local_world_size)
    sharded_model = shard_tables(model, configs(optimizer), plan, world, SEED)
    optimizers = Optimizers(sharded_model, lambda p: torch.optim.SGD(p, lr=RATE), configs(optimizer), plan)
    total = torch.zeros(1)
    for step in range(STEPS):
        optimizers.set_rate_factor(1.0)
        loss = model(request_of(known, shape_of(step, world.rank)))
        loss.backward()
        total = world.sum(loss.detach().clone()[None])
        for parameter in (*optimizers.dense_parameters, *optimizers.copied_parameters):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            world.sum(parameter.grad)
        optimizers.step_dense()
    whole = {}
    for name, value in sharded_model.state_dict().items():
        if name.endswith("scale"):
            continue
        if hasattr(value, "local_shards"):
            out = torch.zeros(value.size()) if world.is_first else None
            value.gather(0, out)
            whole[name.split(".")[-2]] = out
        else:
            whole[name.split(".")[-2]] = value.detach().clone()
    return whole, float(total)


def train_whole(world_size: int, pooling, optimizer) -> tuple[dict[str, Tensor], float]:
    """Train one process that looks up rows, with the batches of all ranks together."""
    known = catalogue(False, pooling)
    model = Tagged(known, torch.device("cpu"))
    initialize_tables(model, SEED, dict.fromkeys(ROWS, STD))
    weights = {name.split(".")[-2]: p for name, p in model.tables.named_parameters()}
    updates = [table_optimizer([weights[name]], config) for name, config in configs(optimizer).items()]
    updates.append(torch.optim.SGD([model.scale], lr=RATE))
    loss = torch.zeros(())
    for step in range(STEPS):
        loss = torch.stack([model(request_of(known, shape_of(step, rank))) for rank in range(world_size)]).sum()
        loss.backward()
        for update in updates:
            update.step()
            update.zero_grad()
    return {name: weight.detach() for name, weight in weights.items()}, float(loss)


@pytest.fixture(scope="module")
def sharded_model(rank_pool):
    return {
        world_size: rank_pool.run(world_size, train_sharded, CASES, local, deadline=120.0)[0]
        for world_size, local in WORLDS.items()
    }


@pytest.fixture(scope="module")
def whole():
    return {
        (world_size, *kind): train_whole(world_size, *kind)
        for world_size in WORLDS
        for kind in (("mean", "adagrad"), ("sum", "sgd"))
    }


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join((*case[0], *case[1:])))
def test_sharded_bags_train_as_rows_in_one_process(sharded_model, whole, case, world_size):
    tables, loss = sharded_model[world_size][CASES.index(case)]
    expected, expected_loss = whole[world_size, *case[1:]]
    assert tables.keys() == ROWS.keys()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, table in tables.items():
        torch.testing.assert_close(table, expected[name], rtol=1e-5, atol=1e-5)


def padded_on(world: World, counts: list[int]) -> tuple[int, list[int], list[float]]:
    count = counts[world.rank]
    lengths = torch.arange(2 * count) % 3
    values = torch.arange(int(lengths.sum()))
    request = KeyedJaggedTensor(["a", "b"], values, values * 0.5, lengths=lengths)
    longer = pad_to_longest(request, world)
    assert longer.values().tolist() == values.tolist()
    return longer.stride(), longer.lengths().tolist(), longer.weights().tolist()


def test_requests_are_as_long_as_the_longest_and_their_own_bags_come_first(rank_pool):
    actual = rank_pool.run(2, padded_on, [1, 3])
    assert [stride for stride, _, _ in actual] == [3, 3]
    assert actual[0][1] == [0, 0, 0, 1, 0, 0]
    assert actual[1][1] == [0, 1, 2, 0, 1, 2]
    assert rank_pool.run(2, padded_on, [2, 2])[0][1] == [0, 1, 2, 0]
