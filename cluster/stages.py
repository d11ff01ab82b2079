"""What the workers of each stage run, and how the driver starts a stage. Each stage is idempotent."""

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config import Config, job_of
from cluster.launch import OnEvent, Workers
from sharding.planning.placing import Placing
from sharding.ranks import Ranks
from trainer.build import Built, build_model, load_to_use
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import Found
from trainer.dataset.manifest import read_manifest
from trainer.day_by_day import is_of
from trainer.errors import CheckpointError
from trainer.evaluation.outputs import Summary, write_outputs
from trainer.job import Channel, Job
from trainer.memory import forget_peak, peak_bytes
from trainer.placement.plan import PLAN_FILE, plan_tables
from trainer.storage import write_json_atomically
from trainer.stream.held_out import Split
from trainer.train import Outcome, Training


def _train_worker(job: Job, ranks: Ranks, channel: Channel) -> Outcome:
    forget_peak(ranks.device)
    training, started = Training(job, ranks, channel), time.monotonic()
    outcome = training.run()
    used = {"peak_bytes": peak_bytes(ranks.device), "seconds": time.monotonic() - started}
    channel.send({"kind": "resources", "rank": ranks.rank, **used})
    return outcome


def train(config: Config, workers: Workers, on_event: OnEvent, stop: threading.Event) -> Outcome:
    """Train to the end, or until asked to stop; continues from the newest checkpoint."""
    job, placing = _planned(config)
    on_event({"kind": "plan", "tables": {name: table.sharding for name, table in placing.plan.tables.items()}})
    for warning in placing.warnings:
        on_event({"kind": "warning", "text": warning})
    write_json_atomically(job.run_dir / PLAN_FILE, placing.plan.values())
    outcome: Outcome = workers.run(_train_worker, job, on_event, stop)[0]
    return outcome


def _planned(config: Config) -> tuple[Job, Placing]:
    """The job with the plan of its tables, so that what cannot be placed is refused before any worker starts."""
    job, cluster = job_of(config), config.cluster
    placing = plan_tables(job, read_manifest(job.dataset_dir), cluster.num_workers, cluster.device)
    return replace(job, placing=placing), placing


@dataclass(frozen=True)
class _EvaluateArgument:
    job: Job
    found: Found
    parts: dict[Split, Path]


def _evaluate_worker(argument: _EvaluateArgument, ranks: Ranks, channel: Channel) -> None:
    job = argument.job
    manifest = read_manifest(job.dataset_dir)
    if not is_of(argument.found.manifest, manifest):
        raise CheckpointError(
            f"checkpoint {argument.found.path} was made from another dataset than {job.dataset_dir}; "
            "evaluate it on its own (run.dataset)"
        )
    built = build_model(job, manifest, ranks)
    load_to_use(argument.found, built)
    for split, parts in argument.parts.items():
        _write_split(built, split, parts, ranks, channel)


def _write_split(built: Built, split: Split, parts: Path, ranks: Ranks, channel: Channel) -> None:
    def on_batch(done: int, total: int) -> None:
        if ranks.is_first:
            channel.send({"kind": "evaluate", "done": done, "total": total})

    built.task.write_parts(split, built.model, ranks, built.dynamic, parts, on_batch)


def evaluate(
    config: Config, splits: Sequence[Split], found: Found, workers: Workers, on_event: OnEvent
) -> dict[Split, Summary]:
    """Evaluate one checkpoint on splits, one after another; write metrics.json, per_user.parquet and report.html of each."""
    job, _ = _planned(config)
    parts = {split: job.run_dir / "evaluation" / split / "parts" for split in splits}
    for folder in parts.values():
        shutil.rmtree(folder, ignore_errors=True)
    found = Found(found.path.resolve(), found.manifest)
    argument = _EvaluateArgument(job, found, parts)
    workers.run(_evaluate_worker, argument, on_event)
    return {split: write_outputs(job, split, found.path.name, parts[split]) for split in splits}


def find_checkpoint(config: Config, name: str | None) -> Found:
    """The named checkpoint ("step_000001000" or a path), else the best, else the newest; verified."""
    if name is None:
        return checkpoint_folder.to_evaluate(config.run_dir / "checkpoints")
    path = Path(name) if "/" in name else config.run_dir / "checkpoints" / name
    return Found(path, checkpoint_folder.verify(path))
