"""Encoding and ranking of ready batches, part by part, by CPU seconds of one thread: `python -m benchmarks --only score`.

The parts of evaluating.py without logs, workers and Ray. Time of a thread hardly depends on what else the machine does.
The ceiling: a product of matrices with as many FLOPs as the forward pass, at the size at which such products are fastest (of
attention only visible pairs count); the bare product of vectors of users and items; and torch.topk of it, for blocks of items, with
the lists merged. The matrices are made before the measurement.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.evaluating import CATALOGUES, attention_flops, bare_product, bare_scores, peak_matrices
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
# Operations by kind, for shares of the time of encoding.
OPERATIONS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "gathers and copies": ("aten::index_select", "aten::index", "aten::copy_", "aten::cat", "aten::embedding"),
    "norms, sums and activations": ("aten::native_layer_norm", "aten::add", "aten::mul", "aten::gelu", "aten::relu"),
}
OTHER = "calls and all else"
ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class ReadyBatch:
    """A batch of histories with its model and looked-up rows."""

    model: NextItemModel
    rows: dict[str, Tensor]
    histories: HistoryBatch
    flops: float
    """FLOPs of the matrix products of a forward pass. Of attention only visible pairs count."""


def compare(turns: int) -> list[Comparison]:
    """Compare one batch of 512 users per size of the catalogue: encoding, ranking with top lists, and both."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            lengths = np.random.default_rng(1).integers(LEAST_EVENTS, MOST_EVENTS + 1, NUM_USERS)
            batch = ready_batch(lengths, WIDTH, MAX_HISTORY)
            rows = [row for num_items in CATALOGUES for row in _compare(batch, num_items, turns)]
            return [*rows, *_shares(batch, turns)]
    finally:
        torch.set_num_threads(threads)


def ready_batch(lengths: np.ndarray, width: int, max_history: int) -> ReadyBatch:
    """Return a batch of random histories of these lengths for a SASRec with the default settings."""
    config = NextItemConfig.model_validate({"max_history": max_history})
    model = NextItemModel(config, [TableSpec("item", NUM_LOOKED_UP + 1, width)], torch.device("cpu")).eval()
    model.initialize(torch.Generator().manual_seed(1))
    for table in model.tables.parameters():
        table.normal_()
    offsets = np.concatenate(([0], lengths.cumsum()))
    nothing = np.zeros(0, np.int64)
    catalogue = Catalogue(NUM_LOOKED_UP + 1, NUM_LOOKED_UP + 1)
    items = np.random.default_rng(3).integers(1, NUM_LOOKED_UP + 1, offsets[-1])
    whole = build_batch(np.arange(lengths.size), offsets, items, nothing, nothing, catalogue, False)
    histories = with_cuts(whole, PIECE_EVENTS)
    rows = model.look_up(histories.items)
    with FlopCounterMode(display=False) as counter:
        model.user_vectors(rows, histories)
    return ReadyBatch(model, rows, histories, counter.get_total_flops() + attention_flops(lengths, model))


def _compare(batch: ReadyBatch, num_items: int, turns: int) -> list[Comparison]:
    top = max(EvaluateConfig().ks)
    random = np.random.default_rng(2)
    items = torch.randn(num_items, WIDTH)
    offsets = batch.histories.layout.offsets.numpy()
    seen, targets = (random.integers(1, num_items + 1, size) for size in (offsets[-1], NUM_USERS))
    users = batch.model.user_vectors(batch.rows, batch.histories)
    query = Query(users, seen, offsets, targets, np.arange(NUM_USERS + 1))
    shard = ItemShard(items, 1)
    block = EvaluateConfig().score_block_items
    square, tall = peak_matrices()
    parts: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
        "encode": (
            lambda: batch.model.user_vectors(batch.rows, batch.histories),
            lambda: bare_product(batch.flops, square, tall),
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
    sums = [tuple(float(sum(side)) for side in zip(*turn.values(), strict=True)) for turn in seconds]
    label = f"{num_items:,} items, one thread"
    rows = [_row(f"{name}, {label}", [turn[name] for turn in seconds], parts[name][2]) for name in parts]
    return [*rows, _row(f"encode and rank, {label}", sums, "both")]


def _shares(batch: ReadyBatch, turns: int) -> list[Comparison]:
    """Return the share of each kind of operation in the time of encoding."""
    seconds: list[dict[str, float]] = []
    for _ in range(turns):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            batch.model.user_vectors(batch.rows, batch.histories)
        times = dict.fromkeys([*OPERATIONS, OTHER], 0.0)
        for operation in profiled.key_averages():
            kind = next((kind for kind, names in OPERATIONS.items() if operation.key in names), OTHER)
            times[kind] += operation.self_cpu_time_total
        seconds.append(times)
    shares = {kind: tuple(100.0 * times[kind] / sum(times.values()) for times in seconds) for kind in seconds[0]}
    whole = (100.0,) * turns
    return [
        Comparison(f"encode, {kind}, one thread", "% of the time", share, whole, "encoding")
        for kind, share in shares.items()
    ]


def _row(name: str, seconds: Sequence[tuple[float, ...]], ceiling: str) -> Comparison:
    ours, other = (tuple(NUM_USERS / turn[side] for turn in seconds) for side in (0, 1))
    return Comparison(name, "users/s", ours, other, ceiling)


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started
