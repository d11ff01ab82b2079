"""The works of a run, as every worker does them: training, and evaluation of a checkpoint.

The driver only names them. What they need, torch and TorchRec above all, is imported where they run: it would take the driver
seconds, before it has said a word.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.dataset.manifest import read_manifest
from trainer.data.dataset.splits import Split
from trainer.errors import CheckpointError
from trainer.job import Channel, Job, Outcome

if TYPE_CHECKING:
    from sharding.world import World


def train(job: Job, world: World, channel: Channel) -> Outcome:
    """Train to the end, or until asked to stop, and say what it took."""
    from trainer.loop.memory import forget_peak, peak_bytes
    from trainer.loop.train import Training

    forget_peak(world.device)
    training, started = Training(job, world, channel), time.monotonic()
    outcome = training.run()
    used = {"peak_bytes": peak_bytes(world.device), "seconds": time.monotonic() - started}
    channel.send({"kind": "resources", "rank": world.rank, **used})
    return outcome


@dataclass(frozen=True)
class EvaluationJob:
    """A checkpoint, and of each split that it is evaluated on the folder for what the ranks find."""

    job: Job
    found: StoredCheckpoint
    parts: dict[Split, Path]


def evaluate(work: EvaluationJob, world: World, channel: Channel) -> None:
    """Raises CheckpointError if the checkpoint is of another dataset."""
    from trainer.checkpoint.finite import refuse_broken_checkpoint
    from trainer.checkpoint.keys import tensors_of
    from trainer.loop.build import build_model, load_for_evaluation
    from trainer.loop.same_run import same_dataset

    job = work.job
    manifest = read_manifest(job.dataset_dir)
    if not same_dataset(work.found.manifest, manifest):
        raise CheckpointError(
            f"checkpoint {work.found.path} was made from another dataset than {job.dataset_dir}; "
            "evaluate it on its own (run.dataset)"
        )

    def on_batch(done: int, total: int) -> None:
        if world.is_first:
            channel.send({"kind": "evaluate", "done": done, "total": total})

    built = build_model(job, manifest, world)
    load_for_evaluation(work.found, built)
    refuse_broken_checkpoint(work.found, tensors_of(built.sharded_model, built.tables, None), world)
    for split, parts in work.parts.items():
        built.task.write_parts(split, built.model, world, built.dynamic, parts, on_batch)
