"""All runs of a folder for `shoal status`: stage, step, speed, last evaluation, workers and restarts. No ray, no torch."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.driver.status import read_status
from trainer.errors import UserError
from trainer.pages.text import duration_text
from trainer.tasks.metrics import headline_names

MOST_DEEP = 3  # folders between the given one and a run, as of the trials of a study


@dataclass(frozen=True)
class RunLine:
    """One run in the list."""

    # Its folder, relative to the given one.
    run: str
    # The newest stage and its status, such as "train running"; "not readable" with the reason for a damaged record.
    stage: str
    # Steps trained, and the steps in all if they are known.
    step: int | None
    total_steps: int | None
    # Speed of the steps, as last recorded.
    events_per_second: float | None
    # Name, value and step of the first metric of the last evaluation; None before the first one.
    evaluation: tuple[str, float, int] | None
    # Workers of the newest training: those that run, otherwise those of the config.
    workers: int | None
    # Restarts of workers so far.
    restarts: int
    # Unix time when the run was last heard of.
    last_seen: float | None


def read_runs(folder: Path) -> list[RunLine]:
    """Return a line for each run below a folder, by name. Raises UserError if the folder does not exist or has no runs."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of your runs, or the folder of one run")
    lines = [_line(run, folder) for run in sorted(_runs_in(folder, MOST_DEEP))]
    if not lines:
        raise UserError(f"{folder}: no runs in it (a run folder has a config.json); give the folder of your runs")
    return lines


def _runs_in(folder: Path, depth: int) -> list[Path]:
    """Return the run folders below a folder. What is inside a run is not looked at."""
    runs: list[Path] = []
    with suppress(OSError):
        for inner in folder.iterdir():
            if inner.name.startswith(".") or not inner.is_dir():
                continue
            if (inner / "config.json").exists():
                runs.append(inner)
            elif depth > 1:
                runs += _runs_in(inner, depth - 1)
    return runs


def _line(run: Path, folder: Path) -> RunLine:
    name = str(run.relative_to(folder))
    try:
        status = read_status(run)
    except UserError as error:  # one damaged run must not hide the others
        return RunLine(name, f"not readable: {error}", None, None, None, None, None, 0, None)
    newest = status.newest.get("train", {})
    running = status.stages.get("train") == "running"
    progress = status.progress if running else {}
    row = status.newest.get("validation", {})
    metrics = {key: row[key] for key in row if key not in ("step", "kind", "seconds") and row[key] is not None}
    first = next(iter([*headline_names(metrics), *metrics]), None)
    return RunLine(
        name,
        _stage(status.stages),
        progress.get("step", newest.get("step")),
        progress.get("total_steps"),
        progress.get("events_per_second", newest.get("events_per_second")),
        None if first is None else (first, metrics[first], row["step"]),
        progress.get("workers", _configured_workers(run)),
        len(status.restarts),
        status.last_seen,
    )


def _stage(stages: dict[str, str]) -> str:
    """Return the stage that matters most: the one that runs, otherwise the last one."""
    if not stages:
        return "not started"
    running = [name for name, status in stages.items() if status == "running"]
    name = running[-1] if running else list(stages)[-1]
    return f"{name} {stages[name]}"


def _configured_workers(run: Path) -> int | None:
    try:
        workers: int = json.loads((run / "config.json").read_text(encoding="utf-8"))["cluster"]["num_workers"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return workers


def runs_table(lines: list[RunLine], now: float) -> Table:
    """Return the runs as a table for people. now: Unix time."""
    table = Table()
    table.add_column("run", overflow="fold")
    for heading in ("stage", "step", "events/s", "last evaluation", "workers", "restarts", "last seen"):
        table.add_column(
            heading, overflow="fold", justify="left" if heading in ("stage", "last evaluation") else "right"
        )
    for line in lines:
        table.add_row(
            line.run,
            line.stage,
            _of(line.step, line.total_steps),
            "" if line.events_per_second is None else f"{line.events_per_second:,.0f}",
            ""
            if line.evaluation is None
            else f"{line.evaluation[0]} {line.evaluation[1]:.4f} at {line.evaluation[2]:,}",
            "" if line.workers is None else str(line.workers),
            str(line.restarts),
            "" if line.last_seen is None else f"{duration_text(max(0.0, now - line.last_seen))} ago",
        )
    return table


def _of(step: int | None, total: Any) -> str:
    if step is None:
        return ""
    return f"{step:,}" if total is None else f"{step:,} of {total:,}"
