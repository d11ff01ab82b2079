"""Results of progressive evaluation: metrics of each day from metrics.jsonl, and means over days. No torch."""

import math
from dataclasses import dataclass
from typing import Any

from trainer.evaluation.ranking.metrics import METRICS
from trainer.evaluation.ranking.names import name_of

SOURCES = ("model", "popularity")
_Values = dict[str, float | None]


@dataclass(frozen=True)
class DayResults:
    """The content of progressive.json. A metric that is not defined is None."""

    days: list[dict[str, Any]]
    """Per day that was evaluated before it was trained: "day", "begins" (its first moment), "step" (trained so far),
    "impressions" by label, and the metrics of "model" and "popularity" by name."""
    mean: dict[str, _Values]
    """The mean over days of the metrics of both, weighted by the label's impressions."""


def day_results(history: list[dict[str, Any]], labels: tuple[str, ...]) -> DayResults | None:
    """Return the results in the lines of metrics.jsonl, None if no day was evaluated."""
    names = {name_of(metric.name, label, labels): label for label in labels for metric in METRICS}
    days = []
    for line in history:
        if line["kind"] == "progressive":
            values = {"model": line, "popularity": line["popularity"]}
            metrics = {source: {name: _finite(values[source].get(name)) for name in names} for source in SOURCES}
            days.append({**{key: line[key] for key in ("day", "begins", "step", "impressions")}, **metrics})
    if not days:
        return None
    return DayResults(days, {s: {name: _mean(days, s, name, label) for name, label in names.items()} for s in SOURCES})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(days: list[dict[str, Any]], source: str, name: str, label: str) -> float | None:
    """Return the mean of a metric over the days on which it is defined."""
    known = [(day["impressions"][label], day[source][name]) for day in days if day[source][name] is not None]
    weight = sum(count for count, _ in known)
    return sum(count * value for count, value in known) / weight if weight else None
