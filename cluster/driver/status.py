"""Status of a run for `shoal status`: its stages, how far training is, the best checkpoint, and the reports. No ray, no torch."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.driver.stage_record import StageRecord
from trainer.checkpoint import folder as checkpoint_folder
from trainer.errors import UserError
from trainer.metrics_log import read_metrics
from trainer.pages.text import duration_text
from trainer.restart_log import Restart, read_restarts, restarts_text
from trainer.tasks.metrics import headline_names


@dataclass(frozen=True)
class RunStatus:
    """State of a run folder."""

    run_dir: str
    # Status of each stage by name.
    stages: dict[str, str]
    # Seconds that each stage took, or has been running; only of stages with known times.
    seconds: dict[str, float]
    # Progress of training as last recorded: step, total_steps, loss, events_per_second, seconds_left; empty if unknown.
    progress: dict[str, Any]
    # Unix time when a worker was last heard of; None before training.
    last_seen: float | None
    # Names of checkpoints, the newest first.
    checkpoints: list[str]
    # Step and validation metric of the best checkpoint, or None.
    best: dict[str, Any] | None
    # The newest line of metrics.jsonl of each kind.
    newest: dict[str, dict[str, Any]]
    # Restarts after failures, the oldest first, without their traces.
    restarts: list[dict[str, Any]]
    # Reports that exist.
    reports: list[str]


def read_status(folder: Path) -> RunStatus:
    """Read the state of a run folder. Raises UserError if it is none."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json, so this is no run folder; give the run.dir of a run")
    record = StageRecord(folder)
    entries = record.read()["stages"]
    statuses = {name: status for name, status in record.statuses().items() if not name.endswith("/report")}
    metrics = folder / "metrics.jsonl"
    progress = dict(entries.get("train", {}).get("progress", {}))
    seen = [time_seen for time_seen in (progress.pop("seen", None), _modified(metrics)) if time_seen is not None]
    return RunStatus(
        run_dir=str(folder),
        stages=statuses,
        seconds={name: s for name in statuses if (s := _seconds(entries[name], statuses[name])) is not None},
        progress=progress,
        last_seen=max(seen, default=None),
        checkpoints=[path.name for path in checkpoint_folder.committed(folder / "checkpoints")],
        best=checkpoint_folder.read_best(folder / "checkpoints"),
        newest={row["kind"]: row for row in read_metrics(metrics)},
        restarts=[_without_trace(restart) for restart in read_restarts(folder)],
        reports=sorted(str(path) for path in (folder / "evaluation").glob("**/report.html")),
    )


def status_table(status: RunStatus, now: float) -> Table:
    """Return the status as a table for people. now: Unix time."""
    table = Table(title=status.run_dir, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, state in status.stages.items():
        seconds = status.seconds.get(name)
        table.add_row(name, state if seconds is None else f"{state}, {duration_text(seconds)}")
    if not status.stages:
        table.add_row("stages", "none has started")
    for name, text in (("step", _step(status)), ("validation", _validation(status)), ("best", _best(status))):
        if text:
            table.add_row(name, text)
    if status.checkpoints:
        table.add_row("checkpoints", f"{len(status.checkpoints)}, the newest {status.checkpoints[0]}")
    if status.last_seen is not None:
        ago = duration_text(max(0.0, now - status.last_seen))
        table.add_row("last seen", f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status.last_seen))}, {ago} ago")
    restarts = [Restart(**values) for values in status.restarts]
    if restarts:
        table.add_row("restarts", f"{len(restarts)}, {restarts_text(restarts)}")
        table.add_row("newest restart", restarts[-1].text)
    for report in status.reports:
        table.add_row("report", report)
    return table


def _without_trace(restart: Restart) -> dict[str, Any]:
    return {name: value for name, value in asdict(restart).items() if name != "trace"}


def _step(status: RunStatus) -> str:
    row = status.newest.get("train")
    running = status.stages.get("train") == "running"
    if running and status.progress:
        given = status.progress
        left = duration_text(given["seconds_left"])
        return (
            f"{given['step']:,} of {given['total_steps']:,}, loss {given['loss']:.4f}, "
            f"{given['events_per_second']:,.0f} events/s, {left} left"
        )
    return "" if row is None else f"{row['step']:,}, loss {row['loss']:.4f}"


def _validation(status: RunStatus) -> str:
    row = status.newest.get("validation")
    if row is None:
        return ""
    metrics = {name: row[name] for name in row if name not in ("step", "kind", "seconds") and row[name] is not None}
    shown = [f"{name} {metrics[name]:.4f}" for name in headline_names(metrics) or metrics]
    return f"at step {row['step']:,}: {', '.join(shown)}"


def _best(status: RunStatus) -> str:
    best = status.best
    return "" if best is None else f"step {best['step']:,}, {best['metric']} {best['value']:.4f}"


def _seconds(entry: dict[str, Any], status: str) -> float | None:
    started = entry.get("started")
    if started is None:
        return None
    if status == "running":
        return time.time() - float(started)
    ended = entry.get("finished")
    return None if ended is None else float(ended) - float(started)


def _modified(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None
