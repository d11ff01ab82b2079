"""Rows per second through a table that is split by rows, looked up and updated, compared with tables that send nothing.

The others are, on each worker at the same time, a table of its share of the rows: the same memory and cores, no communication.
Ids are distinct in every batch, as Shoal asks for them. One thread per worker. torch.nn.Embedding has no row-wise Adagrad; the
one it has keeps a number for every number, and so moves more memory.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from benchmarks.measure import Comparison, take_turns
from benchmarks.traffic import counted_traffic
from models.tables import EmbeddingTables, TableSpec
from sharding.config import CommunicationConfig, TableConfig
from sharding.plan import Plan, TablePlan
from sharding.tables.apply_plan import shard_tables
from sharding.world import World
from trainer.config.job import Channel

NUM_ROWS = (100_000, 10_000_000)
DIM = 64
DRAWS = 20_000  # ids of a worker's batch before each is asked for once
NUM_BATCHES = 5
RATE, EPS = 0.05, 1e-8
SCATTER = 611_953  # a prime: spreads popular ids over the whole table
FP32 = CommunicationConfig()
Work = Callable[[Tensor, bool], Tensor]


def compare(argument: tuple[tuple[int, ...], int], world: World, channel: Channel) -> list[Comparison]:
    """Measure on every rank; the first one's figures are those of all. argument: (sizes of the table, turns)."""
    sizes, turns = argument
    return [comparison for num_rows in sizes for comparison in _of_size(num_rows, turns, world)]


def _of_size(num_rows: int, turns: int, world: World) -> Iterator[Comparison]:
    num_ranks = world.world_size
    share = -(-num_rows // num_ranks)
    sharded = sharded_table(num_rows, world)
    batches = {kind: list(drawn_batches(kind, num_rows, world.rank)) for kind in ("uniform", "Zipf")}
    others: list[tuple[str, Callable[[int], Work]]] = [
        ("bare fbgemm table per worker", _bare),
        ("torch.nn.Embedding(sparse), Adagrad, per worker", _plain),
    ]
    for name, build in others:
        other = build(share)
        for kind, ids in batches.items():
            local = [(batch % share).unique() for batch in ids]
            amount, local_amount = (float(sum(world.gather_ints(sum(map(len, of))))) for of in (ids, local))
            for updates in (False, True):
                yield take_turns(
                    f"look up{' and update' if updates else ''}, {num_rows:,} rows, {kind}, {num_ranks} workers",
                    "rows/s",
                    amount,
                    together(sharded, ids, updates, world),
                    together(other, local, updates, world),
                    name,
                    turns,
                    local_amount,
                )
    if num_ranks > 1:
        for kind, ids in batches.items():
            measured, least = bytes_sent(sharded, ids, share, world)
            name = f"sent in a step, {num_rows:,} rows, {kind}, {num_ranks} workers"
            yield Comparison(name, "bytes", (measured,), (least,), "ids and rows that live elsewhere, nothing else")


def together(work: Work, batches: list[Tensor], updates: bool, world: World) -> Callable[[], None]:
    def run() -> None:
        world.barrier()
        for ids in batches:
            work(ids, updates)
        world.barrier()

    return run


def bytes_sent(work: Work, batches: list[Tensor], share: int, world: World) -> tuple[float, float]:
    """Return the mean bytes that all ranks send in a step with update: (counted, the minimum that the plan implies)."""
    with counted_traffic() as traffic:
        for ids in batches:
            work(ids, True)
    elsewhere = sum(int((ids // share != world.rank).sum()) for ids in batches)
    least = elsewhere * (8 + 2 * DIM * 4)
    counted, implied = (sum(world.gather_ints(n)) / len(batches) for n in (traffic.sent_bytes, least))
    return counted, implied


def sharded_table(num_rows: int, world: World, communication: CommunicationConfig = FP32) -> Work:
    """Return the work that looks up unique ids in a row-wise table, and updates it on request. The work returns the rows."""
    config = TableConfig(dim=DIM, sharding="row_wise", learning_rate=RATE, eps=EPS)
    model = nn.Module()
    model.tables = EmbeddingTables([TableSpec("item", num_rows, DIM)], torch.device("meta"))
    plan = Plan(world.world_size, world.world_size, "cpu", {"item": TablePlan("row_wise", "fused", num_rows, DIM)})
    shard_tables(model, {"item": config}, plan, world, 1, communication)

    def work(ids: Tensor, updates: bool) -> Tensor:
        with torch.set_grad_enabled(updates):
            rows: Tensor = model.get_submodule("tables")({"item": ids})["item"]
        if updates:
            rows.backward(rows.detach())
        return rows.detach()

    return work


def _bare(num_rows: int) -> Work:
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(num_rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=PoolingMode.NONE,
        learning_rate=RATE,
        eps=EPS,
    )
    table.init_embedding_weights_uniform(-0.1, 0.1)

    def work(ids: Tensor, updates: bool) -> Tensor:
        with torch.set_grad_enabled(updates):
            rows: Tensor = table(ids, torch.tensor([0, ids.numel()]))
        if updates:
            rows.backward(rows.detach())
        return rows.detach()

    return work


def _plain(num_rows: int) -> Work:
    table = nn.Embedding(num_rows, DIM, sparse=True)
    optimizer: Any = torch.optim.Adagrad(table.parameters(), lr=RATE, eps=EPS)

    def work(ids: Tensor, updates: bool) -> Tensor:
        with torch.set_grad_enabled(updates):
            rows: Tensor = table(ids)
        if updates:
            rows.backward(rows.detach())
            optimizer.step()
            optimizer.zero_grad()
        return rows.detach()

    return work


def drawn_batches(kind: str, num_rows: int, rank: int) -> Iterator[Tensor]:
    """Yield sorted unique ids of draws that are uniform, or where the n-th most popular id has weight 1 / n."""
    for number in range(NUM_BATCHES):
        rng = np.random.default_rng([rank, number])
        drawn = rng.random(DRAWS)
        ids = num_rows * drawn if kind == "uniform" else float(num_rows) ** drawn - 1
        yield torch.from_numpy(np.unique(ids.astype(np.int64) * SCATTER % num_rows))
