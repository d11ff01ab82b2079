"""Sections that the reports of both tasks share: data card, plan, times, versions and warnings. No torch."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sharding.plan import Plan
from trainer.config.job import Job
from trainer.data.dataset import card
from trainer.data.dataset.manifest import Manifest
from trainer.pages.text import duration_text
from trainer.placement.plan import read_plan
from trainer.storage.objects.paths import relative_link

Rows = list[tuple[str, str]]
PACKAGES = ("shoal", "torch", "torchrec", "ray", "numpy", "pyarrow")


@dataclass(frozen=True)
class CardSummary:
    """The checks of the data card that a reader of the report should know."""

    link: str
    """Path of the card relative to the report; empty if there is no current card."""
    counts: dict[str, int]
    """Checks by verdict."""
    notable: tuple[dict[str, str], ...]
    """"title", "verdict" and "found" of the checks with another verdict than "ok", problems first."""


def card_summary(job: Job, manifest: Manifest, folder: Path) -> CardSummary:
    """Return the summary of the data card. folder: that of the report."""
    checks = card.read_checks(job.dataset_dir, manifest)
    if checks is None:
        return CardSummary("", {}, ())
    link = relative_link(job.dataset_dir / card.PAGE, folder)
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in ("ok", "look", "problem")}
    notable = sorted((check for check in checks if check.verdict != "ok"), key=lambda check: check.verdict != "problem")
    return CardSummary(link, counts, tuple({"title": c.title, "verdict": c.verdict, "found": c.found} for c in notable))


def plan_rows(job: Job) -> list[dict[str, str]]:
    """Return a row per embedding table of the run's plan: size, sharding, and the workers with shards. Empty without a plan."""
    plan = read_plan(job.run_dir)
    if plan is None:
        return []
    return [
        {
            "table": name,
            "rows": f"{table.num_rows:,}",
            "width": f"{table.dim}",
            "sharding": table.sharding.replace("_", " "),
            "kernel": table.kernel.replace("_", " "),
            "workers": _workers_text(plan, name),
        }
        for name, table in plan.tables.items()
    ]


def _workers_text(plan: Plan, table: str) -> str:
    ranks = sorted({shard.rank for shard in plan.shards(table) if shard.num_rows})
    if len(ranks) == plan.world_size:
        return f"all {plan.world_size}" if plan.world_size > 1 else "0"
    return ", ".join(map(str, ranks))


def timing_rows(seconds: Mapping[str, float], num_users: int) -> Rows:
    """Return how long the evaluation took on the first worker.

    Args:
        seconds: by "model", "counting" (of all baselines) and baseline.
        num_users: evaluated users, of all workers.
    """
    names = {"model": "model: encoding and ranking", "counting": "baselines: counting the training part"}
    rows = [(names.get(name, f"baseline {name}: ranking"), duration_text(value)) for name, value in seconds.items()]
    if seconds.get("model"):
        rows.append(("model: speed of all workers", f"{num_users / seconds['model']:,.0f} users/s"))
    return rows


def version_rows() -> Rows:
    """Return the versions that wrote the report."""
    rows = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return rows


def warnings_of(history: list[dict[str, Any]], summary: CardSummary, beaten_by: list[tuple[str, str]]) -> list[str]:
    """Return what a reader should know before the figures, as sentences.

    Args:
        history: the lines of metrics.jsonl.
        summary: of the data card.
        beaten_by: (metric, baseline) where a baseline is better than the model.
    """
    warnings = [f"{baseline} is better than the model in {metric}." for metric, baseline in beaten_by]
    warnings += [
        f"Data card: {check['title']}: {check['found']}." for check in summary.notable if check["verdict"] == "problem"
    ]
    skipped = sum(row["kind"] == "skipped" for row in history)
    if skipped:
        warnings.append(f"{skipped:,} steps of training were skipped, because a loss or gradient was not finite.")
    return warnings
