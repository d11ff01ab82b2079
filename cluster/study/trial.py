"""One trial: the project's own stages, train and evaluate, in a run folder of its own. Runs in an actor of Ray Tune.

The stages start workers of their own through Ray Train; this process only waits for them and asks for no CPU.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from cluster.driver import driver
from cluster.driver.progress import View, plain_console
from cluster.driver.run_lock import locked
from cluster.errors import RunFailedError
from cluster.study.record import Record, begun, read_record, results_of, write_record
from cluster.study.trials import Trial
from trainer.data.dataset.splits import Split
from trainer.errors import UserError
from trainer.metrics_log import read_metrics
from trainer.storage.files import disk_refusal

LOG = "trial.log"
OnValidation = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """A trial that is to be run."""

    trial: Trial
    digest: str  # under which it counts as done
    splits: tuple[Split, ...]  # to evaluate
    keep_checkpoints: bool
    metric: str  # that is shown while it runs, as its evaluation calls it


class _Watch(View):
    """Writes what a person would see into a file, and keeps what the record needs."""

    def __init__(self, console: Console, on_validation: OnValidation) -> None:
        super().__init__(console)
        self.peak_bytes: int | None = None
        self.seconds = 0.0
        self._on_validation = on_validation

    def on_event(self, event: dict[str, Any]) -> None:
        super().on_event(event)
        if event["kind"] == "resources":
            self.peak_bytes = max(self.peak_bytes or 0, event["peak_bytes"])
            self.seconds = max(self.seconds, event["seconds"])
        elif event["kind"] == "validation":
            self._on_validation(event)


def run_trial(task: Task, on_validation: OnValidation) -> Record:
    """Train and evaluate, or resume a stopped trial. Failures are recorded, not raised."""
    run_dir = task.trial.config.run_dir
    try:
        with locked(run_dir):  # makes the folder, and sees that nobody else writes there
            record = begun(read_record(run_dir), task.digest)
            write_record(run_dir, record)
        record = _run(task, record, on_validation)
    except (UserError, RunFailedError) as error:
        return Record("failed", task.digest, reason=str(error))
    except OSError as error:  # the record itself could perhaps not be written
        return Record("failed", task.digest, reason=disk_refusal(error) or repr(error))
    if record.status == "done" and not task.keep_checkpoints:
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return record


def _run(task: Task, record: Record, on_validation: OnValidation) -> Record:
    run_dir = task.trial.config.run_dir
    with (run_dir / LOG).open("a", encoding="utf-8") as file:
        watch = _Watch(plain_console(file=file, width=160), on_validation)
        try:
            outcome, _ = driver.run_prepared(task.trial.config, list(task.splits), watch)
            results = results_of(run_dir, task.splits)
            record = replace(record, status="done", steps=outcome.step, best_step=outcome.best_step, results=results)
        except Exception as error:  # noqa: BLE001 - a process boundary: one trial's failure must not end the others
            message = str(error) if isinstance(error, UserError | RunFailedError) else repr(error)
            watch.print_line(f"failed: {message}")
            record = replace(record, status="failed", reason=message)
    record = replace(
        record,
        train_seconds=record.train_seconds + watch.seconds,
        peak_bytes=max((n for n in (record.peak_bytes, watch.peak_bytes) if n is not None), default=None),
        events_per_second=_speed(task, "events") or record.events_per_second,
        targets_per_second=_speed(task, "targets") or record.targets_per_second,
    )
    write_record(run_dir, record)
    return record


def _speed(task: Task, what: str) -> float | None:
    """Return the last measured speed; None where there is none, also of a run of an earlier version."""
    lines = [line for line in read_metrics(task.trial.config.run_dir / "metrics.jsonl") if line["kind"] == "train"]
    speed: float | None = lines[-1].get(f"{what}_per_second") if lines else None
    return speed
