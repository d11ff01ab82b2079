"""A look-up sends no more than necessary: ids to the rank of their rows, rows back, and gradients to that rank."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.traffic import counted_traffic
from models.tables import EmbeddingTables, TableSpec
from sharding.config import CommunicationConfig, TableConfig
from sharding.plan import Plan, TablePlan
from sharding.tables.apply_plan import shard_tables
from sharding.world import World

NUM_ROWS, DIM = 1000, 16


def look_up_and_back(world: World, communication: CommunicationConfig) -> tuple[int, int]:
    """Return (bytes that this rank sent in a look-up and its update, ids that it requested plus rows that it sent)."""
    model = nn.Module()
    model.tables = EmbeddingTables([TableSpec("item", NUM_ROWS, DIM)], torch.device("meta"))
    plan = Plan(world.world_size, world.world_size, "cpu", {"item": TablePlan("row_wise", "fused", NUM_ROWS, DIM)})
    shard_tables(model, {"item": TableConfig(dim=DIM)}, plan, world, 1, communication)
    ids = torch.randint(0, NUM_ROWS, (500,), generator=torch.Generator().manual_seed(world.rank)).unique()
    with counted_traffic() as traffic:
        rows = model.tables({"item": ids})["item"]
        rows.backward(torch.ones_like(rows))
    share = -(-NUM_ROWS // world.world_size)
    return traffic.sent_bytes, int((ids // share != world.rank).sum())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2)])
def test_a_look_up_sends_ids_rows_and_gradients_of_remote_rows(rank_pool, world_size, precision, size):
    communication = CommunicationConfig(forward=precision, backward=precision)
    results = rank_pool.run(world_size, look_up_and_back, communication)
    sent, elsewhere = (sum(values) for values in zip(*results, strict=True))
    least = elsewhere * (8 + 2 * DIM * size)
    # Besides: how many of each there are, a few numbers for each pair of ranks.
    assert least <= sent <= least + 100 * world_size * (world_size - 1)
    assert (elsewhere > 0) == (world_size > 1)


def exchange(world: World) -> tuple[int, int]:
    with counted_traffic() as traffic:
        # Rank 0 sends 2 and 4 numbers, rank 1 sends 4 and 2.
        sizes = [2, 4] if world.is_first else [4, 2]
        world.exchange(torch.arange(6), sizes, sizes)
        dist.all_to_all_single(torch.zeros(4, 3), torch.zeros(4, 3))
    return traffic.sent_bytes, traffic.num_calls


def test_local_bytes_are_not_counted(rank_pool):
    # Rank 0 keeps 2 of its 6 numbers of 8 bytes, rank 1 keeps 2; of the even exchange each keeps 2 of 4 rows of 3 x 4 bytes.
    assert rank_pool.run(2, exchange) == [(4 * 8 + 2 * 12, 2), (4 * 8 + 2 * 12, 2)]


def sum_while_counting(world: World) -> None:
    with counted_traffic():
        world.sum(torch.zeros(3))


def test_uncountable_traffic_is_refused(rank_pool):
    with pytest.raises(NotImplementedError, match="only all-to-alls"):
        rank_pool.run(2, sum_while_counting)
