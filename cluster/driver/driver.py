"""The driver: a small state machine over the stages prepare, train, evaluate (with its report), each recorded in the run folder.

Running the command again goes on where it stopped: a stage whose inputs have not changed since it was done is not done again.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.config.run_config import Config, job_of
from cluster.data.prepare import Progress, prepare
from cluster.driver import stages
from cluster.driver.new_logs import check_append, kept_outcome
from cluster.driver.progress import View
from cluster.driver.run_folder import Stages, locked, open_run
from cluster.driver.stage_inputs import evaluation_inputs, report_inputs, training_inputs
from cluster.errors import RunFailedError, StoppedError
from cluster.interruption import Interrupted
from cluster.ray_cluster.session import ray_session
from cluster.workers.group import Workers, WorkersFailedError
from trainer.checkpoint import folder as checkpoint_folder
from trainer.data.dataset import card
from trainer.data.dataset.log_checks import times_as_read
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.splits import Split
from trainer.evaluation.outputs import Summary, are_there, summary_of, write_report
from trainer.job import Outcome
from trainer.storage.files import write_text_atomically


@dataclass(frozen=True)
class Finished:
    """What a whole run leaves."""

    outcome: Outcome
    results: Summary
    report: Path


def run(config: Config, view: View) -> Finished:
    """All stages in order, under the run folder's lock, in one Ray session and by the same workers."""
    with _opened(config) as workers:
        manifest = _prepare(config, view)
        outcome = _train(config, manifest, workers, view)
        split: Split = "test" if manifest.counts.test_targets else "validation"
        results, report = _evaluate(config, [split], None, workers, view)[split]
    return Finished(outcome, results, report)


def run_prepare(config: Config, view: View) -> Manifest:
    with _opened(config):
        return _prepare(config, view)


def run_train(config: Config, view: View) -> Outcome:
    """Train on a prepared dataset. Raises UserError if there is none."""
    with _opened(config) as workers:
        return _train(config, read_manifest(config.dataset_dir), workers, view)


def run_evaluate(config: Config, split: Split, name: str | None, view: View) -> tuple[Summary, Path]:
    """Evaluate the named checkpoint, or the best."""
    with _opened(config) as workers:
        return _evaluate(config, [split], name, workers, view)[split]


def run_prepared(config: Config, splits: list[Split], view: View) -> tuple[Outcome, dict[Split, Summary]]:
    """Train on a prepared dataset, and evaluate the best checkpoint on each of the splits."""
    with _opened(config) as workers:
        outcome = _train(config, read_manifest(config.dataset_dir), workers, view)
        evaluated = _evaluate(config, splits, None, workers, view)
    return outcome, {split: results for split, (results, _) in evaluated.items()}


@contextmanager
def _opened(config: Config) -> Iterator[Workers]:
    """The run folder under its lock, a Ray session, and workers that are launched once a stage has work for them."""
    with locked(config.run_dir):
        open_run(config)
        with ray_session(config.cluster), Workers(config.cluster) as workers:
            yield workers


def _announce(view: View, stage: str, status: str) -> None:
    """Tell who watches that a stage "started", is "done", or was "done before"."""
    view.on_event({"kind": "stage", "stage": stage, "status": status})


def _prepare(config: Config, view: View) -> Manifest:
    _announce(view, "prepare", "started")
    manifest = prepare_dataset(config, view)
    Stages(config.run_dir).finish(
        "prepare", manifest.fingerprint, {"dataset": str(config.dataset_dir), "digest": manifest.digest}
    )
    _announce(view, "prepare", "done")
    return manifest


def prepare_dataset(config: Config, view: View) -> Manifest:
    """The dataset of a config, made or found, and what a person should know of it. Ray must be initialised."""

    def show(progress: Progress) -> None:
        view.advance("prepare", progress.done, progress.total, f"{progress.stage}, {progress.rows:,} rows")

    manifest = prepare(config, show, lambda existing: check_append(config, existing))
    view.done()
    counts = manifest.counts
    rejected = sum(counts.rejected.values())
    reasons = "".join(f", {number:,} {reason}" for reason, number in counts.rejected.items())
    view.say(
        f"dataset {config.dataset_dir}: {counts.num_users:,} users, {counts.num_items:,} items, {counts.rows_kept:,} events; "
        f"{counts.train_events:,} train, {counts.validation_targets:,} validate, {counts.test_targets:,} test; "
        f"{rejected:,} rows rejected{reasons}"
    )
    for number, what in (
        (counts.users_without_targets, "users have fewer than two training events, so nothing is learned from them"),
        (counts.users_not_evaluated, "users have too few events to be evaluated"),
    ):
        if number:
            view.say(f"  note: {number:,} {what}")
    if (read_as := times_as_read(manifest)) is not None:
        view.say(f"  {read_as}")
    checks = card.read_checks(config.dataset_dir, manifest)
    if checks is not None:
        for check in checks:
            if check.verdict != "ok":
                view.say(f"  note: {check.verdict}: {check.title}: {check.found}")
        view.say(f"  card: {config.dataset_dir / card.PAGE}")
    return manifest


def _train(config: Config, manifest: Manifest, workers: Workers, view: View) -> Outcome:
    kept = kept_outcome(config, manifest)
    if kept is not None:
        view.say(f"train: the model of step {kept.step:,} is kept, because run.new_logs is evaluate")
        _announce(view, "train", "done before")
        return kept
    inputs = training_inputs(config, manifest)
    record = Stages(config.run_dir)
    done = record.result("train", inputs)
    if done is not None and _checkpoints_are_there(config, done):
        view.say(f"train: done before, at step {done['step']:,}")
        _announce(view, "train", "done before")
        return Outcome(**done)
    record.begin("train", inputs)
    _announce(view, "train", "started")
    with _stop_on_signal(view) as stop:
        outcome: Outcome = _recorded(
            record, {"train": inputs}, lambda: stages.train(config, workers, view.on_event, stop)
        )
    view.done()
    if outcome.reason == "stopped":
        record.end("train", inputs, "stopped", "on request")
        raise StoppedError(f"stopped at step {outcome.step:,}, with a checkpoint; run the same command again to go on")
    record.finish("train", inputs, asdict(outcome))
    early = " early, because the validation metric no longer improved" if outcome.reason == "early" else ""
    best = f"; best checkpoint at step {outcome.best_step:,}" if outcome.best_step is not None else ""
    view.say(f"train: ended{early} at step {outcome.step:,}{best}")
    _announce(view, "train", "done")
    return outcome


def _checkpoints_are_there(config: Config, done: dict[str, Any]) -> bool:
    """Return whether the newest checkpoint is the one that training ended with."""
    newest = checkpoint_folder.committed(config.run_dir / "checkpoints")[:1]
    return [path.name for path in newest] == [checkpoint_folder.name_of(done["step"])]


def _evaluate(
    config: Config, splits: Sequence[Split], name: str | None, workers: Workers, view: View
) -> dict[Split, tuple[Summary, Path]]:
    """Return results and report of each split, which is a stage of its own; those that are to be done are one work."""
    found = stages.find_checkpoint(config, name)
    manifest = read_manifest(config.dataset_dir)
    folder = stages.evaluation_folder(config, name, found)
    stage_of = {split: f"{folder.replace('evaluation', 'evaluate', 1)}/{split}" for split in splits}
    reports = {split: config.run_dir / folder / split / "report.html" for split in splits}
    inputs = {s: evaluation_inputs(config, found, manifest, s) for s in splits}
    record, results = Stages(config.run_dir), {}
    for split in splits:
        done = record.result(stage_of[split], inputs[split])
        if done is not None and are_there(reports[split].parent, done):
            view.say(f"evaluate: {split} done before, of {found.path.name}")
            results[split] = summary_of(done)
            _refresh_report(config, stage_of[split], inputs[split], results[split], reports[split].parent)
            _announce(view, stage_of[split], "done before")
    todo = {stage_of[split]: split for split in splits if split not in results}
    for stage, split in todo.items():
        record.begin(stage, inputs[split])
        _announce(view, stage, "started")
    if todo:
        inputs_of = {stage: inputs[split] for stage, split in todo.items()}
        wanted = list(todo.values())
        results |= _recorded(
            record, inputs_of, lambda: stages.evaluate(config, wanted, found, folder, workers, view.on_event)
        )
    view.done()
    for stage, split in todo.items():
        record.finish(stage, inputs[split], asdict(results[split]))
        record.finish(f"{stage}/report", report_inputs(config, inputs[split], manifest), {})
        _announce(view, stage, "done")
    return {split: (results[split], reports[split]) for split in splits}


def _refresh_report(config: Config, stage: str, inputs: str, results: Summary, folder: Path) -> None:
    """Write the report of a finished evaluation again where its page would differ: after more training, or other settings."""
    record, manifest = Stages(config.run_dir), read_manifest(config.dataset_dir)
    wanted = report_inputs(config, inputs, manifest)
    if record.result(f"{stage}/report", wanted) is None:
        write_report(job_of(config), results, manifest, folder)
        record.finish(f"{stage}/report", wanted, {})


def _recorded(record: Stages, inputs: dict[str, str], work: Callable[[], Any]) -> Any:
    """Note in state.json how stages ended, if not by themselves; tracebacks of workers go to failure.log, not to the screen."""
    try:
        return work()
    except BaseException as error:
        status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        for stage, digest in inputs.items():
            with suppress(OSError):  # such as a full disk, which may be what ended the stage
                record.end(stage, digest, status, str(error) or type(error).__name__)
        if not isinstance(error, WorkersFailedError):
            raise
        log = record.folder / "failure.log"
        details = ""
        with suppress(OSError):
            write_text_atomically(log, error.trace)
            details = f"; details in {log}"
        raise RunFailedError(
            f"{', '.join(inputs)}: {error}{details}. Running the same command again goes on from the newest checkpoint"
        ) from None


@contextmanager
def _stop_on_signal(view: View) -> Iterator[threading.Event]:
    """Within the body, Ctrl-C and SIGTERM set the event; a second one ends the command at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            earlier = before[signal.Signals(number)]
            if callable(earlier):
                earlier(number, frame)
            raise KeyboardInterrupt
        stop.set()
        view.say("stopping after this step, with a checkpoint (press Ctrl-C again to end at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
