"""Evaluate stages, one per split: evaluate a checkpoint on the workers unless that was done before, and write the reports."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.config.run_config import Config, job_of
from cluster.driver.other_data import check_encoding, check_model, check_splits
from cluster.driver.progress import View, announce
from cluster.driver.stage_inputs import evaluation_inputs, report_inputs
from cluster.driver.stage_record import StageRecord
from cluster.driver.train_stage import planned_job
from cluster.workers import jobs
from cluster.workers.group import OnEvent, Workers
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.dataset.manifest import read_manifest
from trainer.data.dataset.splits import Split
from trainer.errors import UserError
from trainer.pages.text import duration_text
from trainer.storage.files import digest_of
from trainer.storage.objects.paths import path_of, remove_tree
from trainer.tasks.outputs import are_there, write_outputs, write_report
from trainer.tasks.results import Summary, summary_of


@dataclass(frozen=True)
class Evaluated:
    """Data other than the splits of the run's own dataset."""

    # Name of the folder of the evaluation.
    name: str
    # The run's config, with the dataset of these data.
    config: Config


def run_evaluate_stages(
    config: Config,
    splits: Sequence[Split],
    name: str | None,
    workers: Workers,
    view: View,
    other: Evaluated | None = None,
) -> dict[Split, tuple[Summary, Path]]:
    """Return the results and the report of each split.

    Args:
        config: of the run.
        splits: what to evaluate on. Each split is its own stage; all pending splits run in one worker job.
        name: of a checkpoint, as find_checkpoint takes it; None: the best.
        workers: launched only if a split is pending.
        view: where progress is shown.
        other: the data to evaluate on; None: the run's own dataset.
    """
    checkpoint = find_checkpoint(config, name, view.on_event)
    check_model(checkpoint, config)
    folder = evaluation_folder(config, name, checkpoint)
    if other is not None:
        check_encoding(config, checkpoint, other.config)
        check_splits(other.config, splits)
        folder = f"{folder}/{other.name}"
        config = other.config
    manifest = read_manifest(config.dataset_dir)
    stage_of = {split: f"{folder.replace('evaluation', 'evaluate', 1)}/{split}" for split in splits}
    reports = {split: config.run_dir / folder / split / "report.html" for split in splits}
    inputs = {s: evaluation_inputs(config, checkpoint, manifest, s) for s in splits}
    record = StageRecord(config.run_dir)
    results: dict[Split, Summary] = {}
    for split in splits:
        done = record.result(stage_of[split], inputs[split])
        if done is not None and are_there(reports[split].parent, done):
            view.print_line(f"evaluate: {split} done before, of {checkpoint.path.name}")
            announce(view, stage_of[split], "done before")
            results[split] = summary_of(done)
            _refresh_report(config, stage_of[split], inputs[split], results[split], reports[split].parent)
    pending = {stage_of[split]: split for split in splits if split not in results}
    if pending:
        started = time.monotonic()
        for stage, split in pending.items():
            record.begin(stage, inputs[split])
            announce(view, stage, "started")
        results |= record.run_stages(
            {stage: inputs[split] for stage, split in pending.items()},
            lambda: evaluate(
                config, list(pending.values()), checkpoint, folder, workers, view.on_event, other is not None
            ),
        )
        view.clear()
        names = " and ".join(pending.values())
        view.print_line(f"evaluate: {names} of {checkpoint.path.name} in {duration_text(time.monotonic() - started)}")
    for stage, split in pending.items():
        record.finish(stage, inputs[split], asdict(results[split]))
        record.finish(f"{stage}/report", report_inputs(config, inputs[split], manifest), {})
        announce(view, stage, "done")
    return {split: (results[split], reports[split]) for split in splits}


def evaluate(
    config: Config,
    splits: Sequence[Split],
    checkpoint: StoredCheckpoint,
    folder: str,
    workers: Workers,
    on_event: OnEvent,
    other_data: bool = False,
) -> dict[Split, Summary]:
    """Evaluate one checkpoint on splits, one after another; write metrics.json, per_user.parquet and report.html of each.

    Args:
        config: of the run, with the dataset to evaluate on.
        splits: of the dataset.
        checkpoint: the checkpoint.
        folder: of these evaluations, relative to the run folder (evaluation_folder).
        workers: run the evaluation.
        on_event: called with their events.
        other_data: whether the dataset is not that of the checkpoint, and has been compared with it.
    """
    job, _ = planned_job(config)
    parts = {split: job.run_dir / folder / split / "parts" for split in splits}
    for left_over in parts.values():
        remove_tree(left_over, ignore_errors=True)
    checkpoint = StoredCheckpoint(checkpoint.path.resolve(), checkpoint.manifest)
    try:
        workers.run(jobs.evaluate, jobs.EvaluationJob(job, checkpoint, parts, other_data), on_event)
        return {split: write_outputs(job, split, checkpoint.path.name, parts[split]) for split in splits}
    except (OSError, UserError):  # partial results are of no use, and the disk may be full
        for partial in parts.values():
            remove_tree(partial, ignore_errors=True)
        raise


def find_checkpoint(config: Config, name: str | None, on_event: OnEvent) -> StoredCheckpoint:
    """Return the named checkpoint ("step_000001000" or a path), else the best, else the newest; verified.

    Raises CheckpointError if it cannot be used, and if there is none of that name with the names that there are.
    """
    if name is None:
        return checkpoint_folder.to_evaluate(
            config.run_dir / "checkpoints", lambda text: on_event({"kind": "warning", "text": text})
        )
    path = path_of(name) if "/" in name else config.run_dir / "checkpoints" / name
    return StoredCheckpoint(path, checkpoint_folder.verify(path))


def evaluation_folder(config: Config, name: str | None, checkpoint: StoredCheckpoint) -> str:
    """Return the folder of evaluations of a checkpoint, relative to the run's: the best's, or one for each that was named.

    A checkpoint of another run may have the same name, so its folder is also named after its content.
    """
    if name is None:
        return "evaluation"
    own = checkpoint.path.resolve().parent == (config.run_dir / "checkpoints").resolve()
    content = "" if own else f"-{digest_of(checkpoint.manifest.files)[:8]}"
    return f"evaluation/{checkpoint.path.name}{content}"


def _refresh_report(config: Config, stage: str, inputs: str, results: Summary, folder: Path) -> None:
    """Rewrite the report of a finished evaluation if its page would differ: after more training, or with other settings."""
    record = StageRecord(config.run_dir)
    manifest = read_manifest(config.dataset_dir)
    wanted = report_inputs(config, inputs, manifest)
    if record.result(f"{stage}/report", wanted) is None:
        write_report(job_of(config), results, manifest, folder)
        record.finish(f"{stage}/report", wanted, {})
