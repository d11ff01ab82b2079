"""Evaluation in users per second (read, encode, mask, rank, list the best), compared with what the machine could do.

The ceiling is executed in the same turn, for the same number of users and on as many threads: a product of matrices with as many
FLOPs as the forward pass, at the size at which such products are fastest; the bare product of ready vectors of users and items; and
torch.topk of it. Of attention only visible pairs count. Its matrices are made beforehand. Neither side includes the vectors of
items, which an evaluation computes once.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Comparison
from benchmarks.memory import peak_memory
from models.batches.micro_batches import with_cuts
from models.next_item.model import NextItemModel
from sharding.world import World
from trainer.config.job import Channel, Job
from trainer.data.dataset.manifest import read_manifest
from trainer.evaluation.next_item.evaluate import PIECE_EVENTS, Evaluator, make_evaluator
from trainer.loop.build import Built, build_model
from trainer.loop.compiled_kernels import set_kernels_of_evaluation

CATALOGUES = (10_000, 100_000, 1_000_000)  # items
NUM_USERS, MEAN_EVENTS = 12_288, 100
PEAK_SIZE = 1024  # rows and columns of the product that measures the peak
PEAK_PRODUCTS = 4  # different products
CEILING_USERS = 512  # users and scores that the ceiling holds at a time
CEILING_SCORES = 1 << 26


def write_log(folder: Path, num_items: int, num_users: int = NUM_USERS, seed: int = 1) -> None:
    """Write a log of histories of 20 to 180 events, in which all items are about equally frequent."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    lengths = random.integers(20, 2 * MEAN_EVENTS - 19, num_users)
    users = np.repeat(np.arange(num_users), lengths)
    items = np.resize(random.permutation(num_items), users.size)
    random.shuffle(items)
    times = 1_700_000_000 + np.arange(users.size)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "time": times}), folder / "events-0.parquet")


def compare(argument: tuple[Job, int, int], world: World, channel: Channel) -> Comparison:
    """Compare batches of an evaluation with the ceiling. Collective.

    argument: the job; the number of turns; and the number of batches of a turn.
    """
    job, turns, num_batches = argument
    built = build_model(job, read_manifest(job.dataset_dir), world)
    evaluator = _evaluator(job, built, world)
    top = max(job.config.evaluate.ks)
    cpus = torch.get_num_threads() * world.world_size
    flops_per_user = _forward_flops(evaluator, built.model, world)
    set_kernels_of_evaluation(built, job.config.evaluate, world)  # torch does not count what they compute
    width = job.config.tables["item"].dim
    items = torch.randn(evaluator.num_items, width) if world.is_first else torch.empty(0, width)
    stream = _batches(evaluator, built.model, top)
    next(stream)
    users = torch.randn(CEILING_USERS, width)
    square, tall = peak_matrices()

    def ours() -> int:
        """Evaluate some batches, and return the number of users of all workers."""
        return sum(world.gather_ints(sum(next(stream) for _ in range(num_batches))))

    def ceiling(num_users: int) -> None:
        if world.is_first:
            torch.set_num_threads(cpus)
            bare_product(flops_per_user * num_users, square, tall)
            for start in range(0, num_users, CEILING_USERS):
                bare_scores(users[: num_users - start], items, top)
            torch.set_num_threads(cpus // world.world_size)
        world.barrier()

    with peak_memory() as peak:
        num_users = ours()
        ours_bytes = peak()
    with peak_memory() as peak:
        ceiling(num_users)
        ceiling_bytes = peak()
    rates = []
    for _ in range(turns):
        started = time.perf_counter()
        num_users = ours()
        middle = time.perf_counter()
        ceiling(num_users)
        rates.append((num_users / (middle - started), num_users / (time.perf_counter() - middle)))
    plural = "s" if world.world_size > 1 else ""
    kernels = ", compiled kernels" if job.config.evaluate.compiled_kernels else ""
    return Comparison(
        f"evaluate {evaluator.num_items:,} items, {world.world_size} worker{plural}{kernels}",
        "users/s",
        tuple(rate for rate, _ in rates),
        tuple(rate for _, rate in rates),
        f"forward pass at the peak of products, bare product and top-{top}, {cpus} threads",
        ours_bytes,
        ceiling_bytes,
    )


def _evaluator(job: Job, built: Built, world: World) -> Evaluator:
    config = job.config
    return make_evaluator(
        job.dataset_dir,
        read_manifest(job.dataset_dir),
        built.catalogue,
        "test",
        config.evaluate,
        config.model.max_history,
        world,
        built.dynamic,
    )


def _batches(evaluator: Evaluator, model: NextItemModel, top: int) -> Iterator[int]:
    """Yield the number of this worker's users in each batch of an evaluation, which begins again at its end."""
    while True:
        for held, _ in evaluator.rank_all(model, top):
            yield held.row_ids.size


def _forward_flops(evaluator: Evaluator, model: NextItemModel, world: World) -> float:
    """Return the FLOPs of matrix products in the forward pass of one user, by the first batch. Collective."""
    held = next(iter(evaluator.held_out.batches()))
    batch = with_cuts(replace(held.batch, items=evaluator.dynamic.rows_of(held.batch.items)), PIECE_EVENTS)
    model.eval()
    with torch.no_grad():
        rows = model.look_up(batch.items)
        with FlopCounterMode(display=False) as counter:
            model.user_vectors(rows, batch)
    flops = counter.get_total_flops() + attention_flops(batch.layout.offsets.diff().numpy(), model)
    sums = world.sum(torch.tensor([float(flops), float(held.row_ids.size)], dtype=torch.float64))
    return float(sums[0] / sums[1])


def attention_flops(lengths: np.ndarray, model: NextItemModel) -> float:
    """Return the FLOPs of the products of causal attention, of which torch's counter knows nothing on a CPU.

    Only visible pairs count: of the last layer those of the last event.
    """
    pairs = (model.config.encoder.num_blocks - 1) * (lengths * (lengths + 1) // 2).sum() + lengths.sum()
    return float(4 * model.width * pairs)


def bare_scores(users: torch.Tensor, items: torch.Tensor, top: int) -> torch.Tensor:
    """Return the largest scores of each user, (B, top), by products and torch.topk only."""
    blocks = items.split(max(top, CEILING_SCORES // users.shape[0]))
    largest = [(users @ block.T).topk(min(top, block.shape[0]), dim=1).values for block in blocks]
    return largest[0] if len(largest) == 1 else torch.cat(largest, dim=1).topk(top, dim=1).values


def peak_matrices() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrices of `bare_product`, (PEAK_SIZE, PEAK_SIZE) and PEAK_PRODUCTS times as tall."""
    return torch.randn(PEAK_SIZE, PEAK_SIZE), torch.randn(PEAK_PRODUCTS * PEAK_SIZE, PEAK_SIZE)


def bare_product(flops: float, square: torch.Tensor, tall: torch.Tensor) -> None:
    """Multiply matrices with about as many FLOPs in all. `square`, `tall`: peak_matrices()."""
    size = PEAK_SIZE
    out = torch.empty(size, size)
    rows = max(1, round(flops / (2 * size * size)))
    for number, start in enumerate(range(0, rows, size)):
        first = number % PEAK_PRODUCTS * size
        part = tall[first : first + min(size, rows - start)]
        torch.mm(part, square, out=out[: part.shape[0]])
