"""Header of a study page: the study, its best point, and the settings of that point."""

import math
from collections.abc import Iterable
from typing import Any

from cluster.study.record import FILE as RECORD
from cluster.study.statistics import Estimate
from cluster.study.summary import Row, Summary
from cluster.study.trials import Plan
from trainer.data.logs.files import entries_of
from trainer.pages.text import duration_text, interval_text, moment_text, setting_text
from trainer.settings import flatten

Rows = list[tuple[str, str]]


def by_rank(rows: Iterable[Row]) -> list[Row]:
    """Return the points from the best to the worst; those without a rank are last."""
    return sorted(rows, key=lambda row: row.rank or math.inf)


def header_rows(plan: Plan, summary: Summary) -> Rows:
    """Return names and values of the header. They depend on the trials only, so that the same study gives the same page."""
    seconds = sum(row.train_seconds * len(row.seeds) for row in summary.rows)
    finished = sum(len(row.seeds) for row in summary.rows)
    paths = plan.file.values.get("logs", {}).get("path")
    data = ", ".join(entry.rstrip("/").rpartition("/")[2] for entry in entries_of(paths)) if paths else ""
    records = [trial.config.run_dir / RECORD for trial in plan.trials]
    ended = [path.stat().st_mtime for path in records if path.exists()]
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    return [
        ("Study", plan.file.folder.name),
        *([("Data", data)] if data else []),
        ("Compared", f"{len(summary.rows)} points by validation {summary.metric}, {len(summary.seeds)} seeds each"),
        ("Trials", f"{finished} of {len(plan.trials)} finished{failed}"),
        ("Cost", f"{duration_text(seconds)} of training, all trials together"),
        *([("Finished", moment_text(max(ended)))] if ended else []),
    ]


def tiles(summary: Summary) -> list[dict[str, str]]:
    """Return the headline figures of the best point; none without a result."""
    best = best_row(summary)
    if best is None:
        return []
    figures: list[tuple[str, Estimate | None, str]] = [
        (f"{summary.metric}, validation", best.validation, ""),
        (f"{summary.metric}, test", best.test, ""),
        ("minus the first point", best.difference, "validation, same seeds and users"),
    ]
    return [
        {"name": name, "value": _mean_text(of, name), "interval": _interval_text(of), "note": note}
        for name, of, note in figures
        if of is not None and math.isfinite(of.mean)
    ]


def best_row(summary: Summary) -> Row | None:
    """Return the point of rank 1, None if no point has a rank."""
    return next((row for row in summary.rows if row.rank == 1), None)


def point_settings(row: Row) -> Rows:
    """Return the settings in which a point differs from the study's base."""
    return [(name, setting_text(value)) for name, value in flatten(row.settings).items()]


def study_settings(plan: Plan) -> Rows:
    """Return the settings of the study's file: what it varies, and the config that all trials start from."""
    study = plan.study.model_dump(mode="json", exclude_defaults=True)
    values: dict[str, Any] = {"study": study, **plan.file.values}
    return [(name, setting_text(value)) for name, value in flatten(values).items() if value is not None]


def _mean_text(estimate: Estimate, name: str) -> str:
    return f"{estimate.mean:+.4f}" if name.startswith("minus") else f"{estimate.mean:.4f}"


def _interval_text(estimate: Estimate) -> str:
    """Return the interval over seeds, or over users with a single seed."""
    bounds = estimate.over_seeds or estimate.over_users
    return "" if bounds is None else interval_text(list(bounds))
