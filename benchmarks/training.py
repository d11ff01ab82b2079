"""Training events per second, compared with a bare PyTorch loop over the same model and batches that are ready in memory."""

import itertools
from typing import Any

import torch
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.measure import Comparison, take_turns
from models.batches.history_batch import HistoryBatch
from models.config import NextItemConfig
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.tables.initialize import initialize_tables
from sharding.world import World
from trainer.config.job import SILENT, Channel, Job
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.order import Position
from trainer.loop.train import Training

STEPS = 20


def compare(argument: tuple[Job, int], world: World, channel: Channel) -> Comparison | None:
    """Measure the real step over the real stream on each rank, and the bare loop with all CPUs on the first, while others wait."""
    job, turns = argument
    training = Training(job, world, SILENT)
    cpus = torch.get_num_threads() * world.world_size
    batches = _ready_batches(training)
    bare = _BareLoop(job, read_manifest(job.dataset_dir).num_item_rows)
    num_events = world.sum(torch.tensor(float(sum(b.layout.num_events for b in batches)))).item()
    everyone = [b for rank_batches in world.gather_objects(batches) for b in rank_batches]  # type: ignore[attr-defined]

    def ours() -> None:
        world.barrier()
        training.built.model.train()
        with training.stream.read_ahead(Position(0, 0), 1) as steps:
            for number, item in enumerate(itertools.islice(steps, STEPS)):
                training.step(item.batch, number, 1.0, False)
        world.barrier()

    def ceiling() -> None:
        if world.is_first:
            torch.set_num_threads(cpus)
            bare.run(everyone)
            torch.set_num_threads(cpus // world.world_size)
        world.barrier()

    name = f"train, {world.world_size} worker{'s' if world.world_size > 1 else ''}"
    return take_turns(name, "events/s", num_events, ours, ceiling, f"bare loop, ready batches, {cpus} threads", turns)


def _ready_batches(training: Training) -> list[HistoryBatch]:
    with training.stream.read_ahead(Position(0, 0), 1) as steps:
        return [item.batch for item in itertools.islice(steps, STEPS)]


class _BareLoop:
    """What anyone would write: the model as a plain module, plain optimizers, backward, step."""

    def __init__(self, job: Job, num_item_rows: int) -> None:
        assert isinstance(job.config.model, NextItemConfig)
        self.model = NextItemModel(
            job.config.model, [TableSpec("item", num_item_rows, job.config.tables["item"].dim)], torch.device("cpu")
        )
        self.model.initialize(torch.Generator().manual_seed(job.config.run.seed))
        initialize_tables(self.model, job.config.run.seed, {"item": 0.02})
        self.optimizers: list[Any] = [
            torch.optim.AdamW(self.model.encoder.parameters(), lr=1e-3),
            RowWiseAdagrad(list(self.model.tables.parameters()), lr=0.05),
        ]

    def run(self, batches: list[HistoryBatch]) -> None:
        self.model.train()
        for batch in batches:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            rows = self.model.look_up(batch.items)
            (self.model.loss(rows, batch) / max(1, batch.target_ids.numel())).backward()
            for optimizer in self.optimizers:
                optimizer.step()
