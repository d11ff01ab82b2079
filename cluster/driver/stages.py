"""How the driver starts a stage: what is given to the workers, and what is made of their answers. Each stage is idempotent."""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.config.run_config import Config, job_of
from cluster.workers import jobs as works
from cluster.workers.group import OnEvent, Workers
from sharding.planning.planned_tables import PlannedTables
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.dataset.manifest import read_manifest
from trainer.data.dataset.splits import Split
from trainer.errors import UserError
from trainer.job import Job, Outcome
from trainer.placement.plan import PLAN_FILE, plan_tables
from trainer.storage.files import digest_of, write_json_atomically
from trainer.tasks.outputs import Summary, write_outputs


def train(config: Config, workers: Workers, on_event: OnEvent, stop: threading.Event) -> Outcome:
    """Train to the end, or until asked to stop; continues from the newest checkpoint."""
    job, planned_tables = _planned(config)
    on_event({"kind": "plan", "tables": {name: table.sharding for name, table in planned_tables.plan.tables.items()}})
    for warning in planned_tables.warnings:
        on_event({"kind": "warning", "text": warning})
    write_json_atomically(job.run_dir / PLAN_FILE, planned_tables.plan.values())
    outcome: Outcome = workers.run(works.train, job, on_event, stop)[0]
    return outcome


def _planned(config: Config) -> tuple[Job, PlannedTables]:
    """The job with the plan of its tables, so that what cannot be placed is refused before any worker starts."""
    job, cluster = job_of(config), config.cluster
    planned_tables = plan_tables(job, read_manifest(job.dataset_dir), cluster.num_workers, cluster.device)
    return replace(job, planned_tables=planned_tables), planned_tables


def evaluate(
    config: Config, splits: Sequence[Split], found: StoredCheckpoint, folder: str, workers: Workers, on_event: OnEvent
) -> dict[Split, Summary]:
    """Evaluate one checkpoint on splits, one after another; write metrics.json, per_user.parquet and report.html of each.

    folder: of these evaluations, in the run folder (evaluation_folder).
    """
    job, _ = _planned(config)
    parts = {split: job.run_dir / folder / split / "parts" for split in splits}
    for left_over in parts.values():
        shutil.rmtree(left_over, ignore_errors=True)
    found = StoredCheckpoint(found.path.resolve(), found.manifest)
    try:
        workers.run(works.evaluate, works.EvaluationJob(job, found, parts), on_event)
        return {split: write_outputs(job, split, found.path.name, parts[split]) for split in splits}
    except (OSError, UserError):  # a full disk has better uses for them
        for partial in parts.values():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def find_checkpoint(config: Config, name: str | None) -> StoredCheckpoint:
    """Return the named checkpoint ("step_000001000" or a path), else the best, else the newest; verified.

    Raises CheckpointError if it cannot be used, and if there is none of that name with the names that there are.
    """
    if name is None:
        return checkpoint_folder.to_evaluate(config.run_dir / "checkpoints")
    path = Path(name) if "/" in name else config.run_dir / "checkpoints" / name
    return StoredCheckpoint(path, checkpoint_folder.verify(path))


def evaluation_folder(config: Config, name: str | None, found: StoredCheckpoint) -> str:
    """Return the folder of evaluations of a checkpoint, relative to the run's: the best's, or one for each that was named.

    A checkpoint of another run may have the same name, so its folder is also named after its content.
    """
    if name is None:
        return "evaluation"
    own = found.path.resolve().parent == (config.run_dir / "checkpoints").resolve()
    content = "" if own else f"-{digest_of(found.manifest.files)[:8]}"
    return f"evaluation/{found.path.name}{content}"
