"""The works of a run, as every worker does them: training, and evaluation of a checkpoint.

A file of its own, because a worker imports what its work is defined beside, and it needs neither reports nor Ray Train's trainer.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from sharding.ranks import Ranks
from trainer.build import Built, build_model, load_to_use
from trainer.checkpoint.folder import Found
from trainer.dataset.manifest import read_manifest
from trainer.day_by_day import is_of
from trainer.errors import CheckpointError
from trainer.job import Channel, Job
from trainer.memory import forget_peak, peak_bytes
from trainer.stream.held_out import Split
from trainer.train import Outcome, Training


def train(job: Job, ranks: Ranks, channel: Channel) -> Outcome:
    """Train to the end, or until asked to stop, and say what it took."""
    forget_peak(ranks.device)
    training, started = Training(job, ranks, channel), time.monotonic()
    outcome = training.run()
    used = {"peak_bytes": peak_bytes(ranks.device), "seconds": time.monotonic() - started}
    channel.send({"kind": "resources", "rank": ranks.rank, **used})
    return outcome


@dataclass(frozen=True)
class ToEvaluate:
    """A checkpoint, and of each split that it is evaluated on the folder for what the ranks find."""

    job: Job
    found: Found
    parts: dict[Split, Path]


def evaluate(work: ToEvaluate, ranks: Ranks, channel: Channel) -> None:
    """Raises CheckpointError if the checkpoint is of another dataset."""
    job = work.job
    manifest = read_manifest(job.dataset_dir)
    if not is_of(work.found.manifest, manifest):
        raise CheckpointError(
            f"checkpoint {work.found.path} was made from another dataset than {job.dataset_dir}; "
            "evaluate it on its own (run.dataset)"
        )
    built = build_model(job, manifest, ranks)
    load_to_use(work.found, built)
    for split, parts in work.parts.items():
        _write_split(built, split, parts, ranks, channel)


def _write_split(built: Built, split: Split, parts: Path, ranks: Ranks, channel: Channel) -> None:
    def on_batch(done: int, total: int) -> None:
        if ranks.is_first:
            channel.send({"kind": "evaluate", "done": done, "total": total})

    built.task.write_parts(split, built.model, ranks, built.dynamic, parts, on_batch)
