"""Header of a report: the run, when and how long it ran, and its settings that differ from the defaults. No torch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from models.ranking.config import RankingConfig
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import CLOCK_UNITS, time_as_text, unit_of_clock
from trainer.data.logs.files import entries_of
from trainer.evaluation.metric import Metric
from trainer.metrics_log import read_training_time
from trainer.pages.text import duration_text, moment_text, setting_text
from trainer.restart_log import read_restarts, restarts_text
from trainer.settings import flatten

Rows = list[tuple[str, str]]


def header_rows(job: Job, manifest: Manifest, checkpoint: str, folder: Path, history: list[dict[str, Any]]) -> Rows:
    """Return names and values of the header.

    Args:
        job: the run.
        manifest: its dataset's.
        checkpoint: the name of the evaluated checkpoint.
        folder: the folder of the evaluation, with metrics.json.
        history: the lines of metrics.jsonl.
    """
    counts = manifest.counts
    rows = [
        ("Run", str(job.run_dir.name)),
        ("Model", model_text(job)),
        (
            "Data",
            f"{_logs_text(job)}{counts.num_users:,} users, {counts.num_items:,} items, {counts.train_events:,} training "
            f"{'impressions' if manifest.task == 'ranking' else 'events'}",
        ),
        ("Checkpoint", checkpoint),
    ]
    if (folder / "metrics.json").exists():
        rows.append(("Evaluated", moment_text((folder / "metrics.json").stat().st_mtime)))
    return rows + _training_rows(job, history)


def model_text(job: Job) -> str:
    """Return the kind and the size of a model in words."""
    model, width = job.config.model, job.config.tables["item"].dim if "item" in job.config.tables else None
    parts = [
        f"{model.kind} ranker" if isinstance(model, RankingConfig) else f"{model.encoder.kind} encoder",
        f"{len(model.encoder.heads_of_blocks)} blocks" if not isinstance(model, RankingConfig) else "",
        f"width {width}" if width else "",
        f"history of {model.max_history:,} events",
        f"objective {model.objective.kind}" if not isinstance(model, RankingConfig) else "",
    ]
    return ", ".join(part for part in parts if part)


def setting_rows(job: Job) -> Rows:
    """Return the settings of a run that differ from their defaults, with their values."""
    flat = flatten(job.config_values)
    return [(name, setting_text(value)) for name, value in flat.items() if name not in job.at_default]


def protocol_rows(protocol: dict[str, Any], manifest: Manifest) -> Rows:
    """Return names and values of a protocol, with times of a clock as dates."""
    rows = []
    for name, value in protocol.items():
        if name == "split":
            text = split_text(value, manifest)
        elif isinstance(value, int) and not isinstance(value, bool):
            text = f"{value:,}"
        else:
            text = str(value)
        rows.append((name.replace("_", " "), text))
    return rows


def moment_of(time: int, manifest: Manifest) -> str:
    """Return a time of the dataset as a date and time in UTC where it is one of a clock, else as it is."""
    span = manifest.source.get("time") or {}
    if span.get("kind") == "timestamp":
        return f"{time_as_text(time, 'timestamp')} UTC"
    first, last = span.get("first"), span.get("last")
    unit = unit_of_clock(int(first), int(last)) if first is not None and last is not None else None
    if unit is None:
        return f"{time}"
    seconds = np.datetime64(int(time) // CLOCK_UNITS[unit], "s")
    return f"{str(seconds).replace('T', ' ')} UTC"


def explanations(metrics: Iterable[Metric], names: Iterable[str]) -> Rows:
    """Return the name and the meaning of each metric that has a value among the names."""
    known = list(names)
    return [(m.placeholder, m.explanation) for m in metrics if any(m.matches(name) for name in known)]


def split_text(split: dict[str, Any], manifest: Manifest) -> str:
    """Return a split, as the manifest holds it, in words."""
    number = split.get("num_targets", 1)
    events = "event" if number == 1 else f"{number} events"
    if split.get("kind") == "last_n":
        return f"last {number}: the last {events} of each user are test targets, the {number} before them validation targets"
    if split.get("kind") == "user_holdout":
        shares = (
            f"{split['validation_share']:.1%} of the users for validation and {split['test_share']:.1%} for the test"
        )
        return f"by users: {shares} are never trained on; their last {events} are targets, and the events before are history"
    if split.get("kind") == "new_logs":
        past = "the events of the training data, and of the new logs" if split["history"] else "events of the new logs"
        return f"later logs: every new event is a target; histories are {past}, before the target"
    if split.get("kind") == "global_time":
        first, second = (moment_of_setting(split[name], manifest) for name in ("validation_time", "test_time"))
        return f"by time: training before {first}, validation from then on, test from {second}"
    if split.get("kind") == "leave_one_out":
        return "leave one out: the last event of each user is the test target, the one before it the validation target"
    return str(split)


def moment_of_setting(value: int | str, manifest: Manifest) -> str:
    """Return a time of a setting, which is an integer or a date, as people read it."""
    return value if isinstance(value, str) else moment_of(value, manifest)


def _logs_text(job: Job) -> str:
    return f"{', '.join(Path(entry).name for entry in entries_of(job.config.logs.path))}: "


def _training_rows(job: Job, history: list[dict[str, Any]]) -> Rows:
    """Return when training ended, how long it took, and what it cost: none of it for a run without the record."""
    rows: Rows = []
    took = read_training_time(job.run_dir)
    steps = max((row["step"] for row in history), default=0)
    speeds = [row["events_per_second"] for row in history if row["kind"] == "train" and "events_per_second" in row]
    speed = f", {speeds[-1]:,.0f} events/s" if speeds else ""
    if took is not None:
        rows.append(
            ("Trained", f"until {moment_text(took.ended)}, {steps:,} steps in {duration_text(took.seconds)}{speed}")
        )
        cluster = job.config_values.get("cluster", {})
        workers = cluster.get("num_workers")
        if workers:
            device = "GPU" if cluster.get("gpus_per_worker") else "CPU"
            hours = workers * took.seconds / 3600
            rows.append(("Cost", f"{hours:,.2f} worker hours ({workers} {device} worker{'s' * (workers > 1)})"))
    elif steps:
        rows.append(("Trained", f"{steps:,} steps{speed}"))
    restarts = read_restarts(job.run_dir)
    if restarts:
        rows.append(("Restarts", f"{len(restarts)}, {restarts_text(restarts)}"))
    return rows
