"""Train stage: trains on the workers, unless this training was done before, and records how it ended."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cluster.config.run_config import Config, job_of
from cluster.driver.evaluated_training import train_and_evaluate
from cluster.driver.new_logs import kept_outcome
from cluster.driver.progress import View, announce
from cluster.driver.run_metrics import RunMetrics
from cluster.driver.signals import stop_on_signal
from cluster.driver.stage_inputs import training_inputs
from cluster.driver.stage_record import StageRecord
from cluster.errors import StoppedError
from cluster.workers import jobs
from cluster.workers.group import OnEvent, Workers
from cluster.workers.metrics import Gauges, run_gauges
from sharding.planning.planned_tables import PlannedTables
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Job, Outcome
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.errors import UserError
from trainer.metrics_log import read_metrics
from trainer.pages.text import duration_text
from trainer.placement.plan import PLAN_FILE, plan_tables
from trainer.restart_log import EVALUATION, note_recovery, note_restart
from trainer.storage.files import write_json_atomically

STAGE = "train"
PROGRESS = (
    "step",
    "total_steps",
    "loss",
    "events_per_second",
    "seconds_left",
    "workers",
)  # of a "train" event, for the record


def run_train_stage(config: Config, manifest: Manifest, workers: Workers, view: View) -> Outcome:
    """Train to the end, and return how it ended. Raises StoppedError if the user asked to stop."""
    if manifest.derived:
        raise UserError(
            f"dataset {config.dataset_dir}: was made from later logs to evaluate a model on, so nothing can be trained on it; "
            "choose another run.dataset"
        )
    kept = kept_outcome(config, manifest)
    if kept is not None:
        view.print_line(f"train: the model of step {kept.step:,} is kept, because run.new_logs is evaluate")
        announce(view, STAGE, "done before")
        return kept
    inputs = training_inputs(config, manifest)
    record = StageRecord(config.run_dir)
    done = record.result(STAGE, inputs)
    if done is not None and _checkpoints_are_there(config, done):
        view.print_line(f"train: done before, at step {done['step']:,}")
        announce(view, STAGE, "done before")
        return Outcome(**done)
    record.begin(STAGE, inputs)
    announce(view, STAGE, "started")
    started = time.monotonic()

    metrics = RunMetrics(_export_of(config, workers))
    restarting = threading.Lock()  # the thread of concurrent evaluations sends events too

    def on_event(event: dict[str, Any]) -> None:
        metrics.on_event(event)
        if event["kind"] == "train":
            record.note_progress(STAGE, {name: event[name] for name in PROGRESS if name in event})
        else:
            with restarting:
                _note_restarts(config.run_dir, event)
        view.on_event(event)

    with stop_on_signal(view) as stop:
        outcome = record.run_stages({STAGE: inputs}, lambda: train(config, workers, on_event, stop))
    view.clear()
    if outcome.reason == "stopped":
        record.end(STAGE, inputs, "stopped", "on request")
        raise StoppedError(f"stopped at step {outcome.step:,}, with a checkpoint; run the same command again to resume")
    record.finish(STAGE, inputs, asdict(outcome))
    announce(view, STAGE, "done")
    view.print_line(_summary(outcome, time.monotonic() - started, _events_per_second(config)))
    return outcome


def _note_restarts(run_dir: Path, event: dict[str, Any]) -> None:
    """Write restarts of workers, and what they took, into the restart log."""
    match event["kind"]:
        case "restart":
            note_restart(run_dir, event["cause"], event["text"], event["trace"])
        case "evaluation_restart":
            note_restart(run_dir, EVALUATION, event["text"], event["trace"])
        case "recovered":
            took = {name: event[name] for name in ("seconds", "parts", "steps", "rows")}
            note_recovery(run_dir, **took)


def _export_of(config: Config, workers: Workers) -> Callable[[dict[str, float]], None]:
    """Return what exports metrics of the run; nothing without a cluster, which nobody monitors."""
    if config.cluster.address is None:
        return lambda values: None
    gauges: list[Gauges] = []

    def export(values: dict[str, float]) -> None:
        if not gauges:
            gauges.append(run_gauges(workers.run_name, config.run_dir.resolve().name))
        gauges[0].set(values)

    return export


def train(config: Config, workers: Workers, on_event: OnEvent, stop: threading.Event) -> Outcome:
    """Run the training job on the workers until it ends or `stop` is set; it resumes from the newest checkpoint."""
    job, planned_tables = planned_job(config)
    on_event({"kind": "plan", "tables": {name: table.sharding for name, table in planned_tables.plan.tables.items()}})
    for warning in planned_tables.warnings:
        on_event({"kind": "warning", "text": warning})
    write_json_atomically(job.run_dir / PLAN_FILE, planned_tables.plan.values())
    if config.cluster.of_evaluation is not None:
        evaluation, _ = planned_job(config.model_copy(update={"cluster": config.cluster.of_evaluation}))
        return train_and_evaluate(config.cluster, job, evaluation, workers, on_event, stop)
    outcome: Outcome = workers.run(jobs.train, job, on_event, stop)[0]
    return outcome


def planned_job(config: Config) -> tuple[Job, PlannedTables]:
    """Return the job with the plan of its tables, so that tables that cannot be placed are refused before workers start."""
    job, cluster = job_of(config), config.cluster
    planned_tables = plan_tables(job, read_manifest(job.dataset_dir), cluster.num_workers, cluster.device)
    return replace(job, planned_tables=planned_tables), planned_tables


def _events_per_second(config: Config) -> float | None:
    """Return the mean speed of the steps as last logged, or None if no step was."""
    steps = [row for row in read_metrics(config.run_dir / "metrics.jsonl") if row["kind"] == "train"]
    return steps[-1]["events_per_second"] if steps else None


def _summary(outcome: Outcome, seconds: float, events_per_second: float | None) -> str:
    early = " early, because the validation metric no longer improved" if outcome.reason == "early" else ""
    speed = f", {events_per_second:,.0f} events/s in steps" if events_per_second is not None else ""
    best = f"; best checkpoint at step {outcome.best_step:,}" if outcome.best_step is not None else ""
    return f"train: ended{early} at step {outcome.step:,} in {duration_text(seconds)}{speed}{best}"


def _checkpoints_are_there(config: Config, done: dict[str, Any]) -> bool:
    """Return whether the newest checkpoint is the one that training ended with."""
    newest = checkpoint_folder.committed(config.run_dir / "checkpoints")[:1]
    return [path.name for path in newest] == [checkpoint_folder.name_of(done["step"])]
