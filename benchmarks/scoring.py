"""Encoding and ranking of ready batches, part by part, by CPU seconds of one thread: `python -m benchmarks --only score`.

The parts of evaluating.py without logs, workers and Ray. Time of a thread hardly depends on what else the machine does.
The ceiling: a product of matrices with as many FLOPs as the forward pass, at the size at which such products are fastest; the bare
product of vectors of users and items; and torch.topk of it, for blocks of items, with the lists merged.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.evaluating import CATALOGUES, bare_product, bare_scores
from benchmarks.measure import Comparison
from models.batches.history_batch import HistoryBatch, build_batch
from models.batches.micro_batches import with_cuts
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.world import World
from trainer.config.evaluate import EvaluateConfig
from trainer.evaluation.next_item.evaluate import PIECE_EVENTS
from trainer.evaluation.next_item.scoring import ItemShard, Query, rank_items

WIDTH, NUM_USERS, MAX_HISTORY, NUM_LOOKED_UP = 64, 512, 200, 3000
LEAST_EVENTS, MOST_EVENTS = 20, 180
ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class _Batch:
    """A batch of histories with its model and looked-up rows."""

    model: NextItemModel
    rows: dict[str, Tensor]
    histories: HistoryBatch
    flops: float


def compare(turns: int) -> list[Comparison]:
    """Compare one batch of 512 users per size of the catalogue: encoding, ranking with top lists, and both."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            batch = _batch()
            return [row for num_items in CATALOGUES for row in _compare(batch, num_items, turns)]
    finally:
        torch.set_num_threads(threads)


def _batch() -> _Batch:
    config = NextItemConfig.model_validate({"max_history": MAX_HISTORY})
    model = NextItemModel(config, [TableSpec("item", NUM_LOOKED_UP + 1, WIDTH)], torch.device("cpu")).eval()
    model.initialize(torch.Generator().manual_seed(1))
    for table in model.tables.parameters():
        table.normal_()
    random = np.random.default_rng(1)
    offsets = np.concatenate(([0], random.integers(LEAST_EVENTS, MOST_EVENTS + 1, NUM_USERS).cumsum()))
    nothing = np.zeros(0, np.int64)
    catalogue = Catalogue(NUM_LOOKED_UP + 1, NUM_LOOKED_UP + 1)
    items = random.integers(1, NUM_LOOKED_UP + 1, offsets[-1])
    whole = build_batch(np.arange(NUM_USERS), offsets, items, nothing, nothing, catalogue, False)
    histories = with_cuts(whole, PIECE_EVENTS)
    rows = model.look_up(histories.items)
    with FlopCounterMode(display=False) as counter:
        model.user_vectors(rows, histories)
    return _Batch(model, rows, histories, float(counter.get_total_flops()))


def _compare(batch: _Batch, num_items: int, turns: int) -> list[Comparison]:
    top = max(EvaluateConfig().ks)
    random = np.random.default_rng(2)
    items = torch.randn(num_items, WIDTH)
    offsets = batch.histories.layout.offsets.numpy()
    seen, targets = (random.integers(1, num_items + 1, size) for size in (offsets[-1], NUM_USERS))
    users = batch.model.user_vectors(batch.rows, batch.histories)
    query = Query(users, seen, offsets, targets, np.arange(NUM_USERS + 1))
    shard = ItemShard(items, 1)
    block = EvaluateConfig().score_block_items
    parts: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
        "encode": (
            lambda: batch.model.user_vectors(batch.rows, batch.histories),
            lambda: bare_product(batch.flops),
            "products of the same FLOPs at their peak",
        ),
        "rank": (
            lambda: rank_items(query, shard, top, True, block, ALONE),
            lambda: bare_scores(users, items, top),
            f"bare product and top-{top}",
        ),
    }
    for ours, ceiling, _ in parts.values():
        ours()
        ceiling()
    seconds = [
        {name: (_cpu_seconds(ours), _cpu_seconds(bare)) for name, (ours, bare, _) in parts.items()}
        for _ in range(turns)
    ]
    sums = [tuple(map(sum, zip(*turn.values(), strict=True))) for turn in seconds]
    label = f"{num_items:,} items, one thread"
    rows = [_row(f"{name}, {label}", [turn[name] for turn in seconds], parts[name][2]) for name in parts]
    return [*rows, _row(f"encode and rank, {label}", sums, "both")]


def _row(name: str, seconds: list[tuple[float, ...]], ceiling: str) -> Comparison:
    ours, other = (tuple(NUM_USERS / turn[side] for turn in seconds) for side in (0, 1))
    return Comparison(name, "users/s", ours, other, ceiling)


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started
