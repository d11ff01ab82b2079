"""From finished trials to one row per point: means over seeds with intervals, what it cost, and how it differs from the first.

Points are ranked by the validation split. Test figures are shown and decide nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.study.collect import Finished, estimate_of
from cluster.study.costing import Costing, Unit, unit_of
from cluster.study.effects import Effect, effects
from cluster.study.statistics import Estimate, pareto_front
from cluster.study.trials import Plan
from trainer.tasks.metrics import larger_is_better


@dataclass(frozen=True)
class Row:
    """A point."""

    name: str
    title: str  # its name with what it stands for
    label: str
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    rank: int | None  # from 1 by the validation metric; None where that is not defined
    validation: Estimate
    test: Estimate | None
    metrics: dict[str, dict[str, float | None]]  # by split, means over seeds; None where one is not defined
    difference: Estimate | None  # to the first point that has a result, None for itself
    test_difference: Estimate | None
    costs: Costing
    events_per_second: float | None  # median over seeds
    impressions_per_second: float | None  # the same of a ranker
    peak_bytes: int | None  # the largest
    train_seconds: float  # mean over seeds
    resumed: bool
    fronts: tuple[str, ...] = ()  # the axes for which the point is on the Pareto front
    failed: tuple[str, ...] = ()  # trials without a result


@dataclass(frozen=True)
class Axis:
    """A cost that quality is weighed against."""

    name: str  # in results.json
    more_is_better: bool
    label: str  # in plots
    short: str
    of: Callable[[Row], float | None]  # None where it is not known


def axes_of(unit: Unit) -> tuple[Axis, ...]:
    """Return the axes of a study with costs counted per this unit."""
    return (
        Axis(
            f"training_flops_per_{unit}",
            False,
            f"training FLOPs per {unit}",
            "FLOPs",
            lambda row: row.costs.training_flops,
        ),
        Axis(
            f"{unit}s_per_second",
            True,
            f"{unit}s/s in training",
            "speed",
            lambda row: row.impressions_per_second if unit == "impression" else row.events_per_second,
        ),
        Axis("peak_bytes", False, "peak memory of a worker", "memory", lambda row: row.peak_bytes),
    )


@dataclass(frozen=True)
class Summary:
    """Results of a study."""

    metric: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]  # in the order of the study
    failed: dict[str, str]  # by trial, why it has no result
    first: str | None  # the point that others are compared with
    effects: tuple[Effect, ...]  # of each setting of a grid
    unit: Unit  # of costs and speed

    @property
    def larger_is_better(self) -> bool:
        """True if a larger value of the metric is better."""
        return larger_is_better(self.metric)


def summarize(
    plan: Plan, finished: Mapping[str, Finished], failed: dict[str, str], costs: Sequence[Costing]
) -> Summary:
    """Return the summary of a study.

    Args:
        plan: points and trials of the study.
        finished: metrics of finished trials by name.
        failed: reasons of failed trials by name.
        costs: of each point.
    """
    groups = [
        (number, [finished[trial.name] for trial in plan.of_point(number) if trial.name in finished])
        for number in range(len(plan.points))
    ]
    groups = [(number, group) for number, group in groups if group]
    first = groups[0][1] if groups else []
    rows = [_row(plan, number, group, first, failed, costs[number]) for number, group in groups]
    unit = unit_of(plan.trials[0].config)
    sign = 1.0 if larger_is_better(plan.study.metric) else -1.0
    qualities = [sign * row.validation.mean for row in rows]
    # A mean that is not defined has no place: compared with, it would leave the order of the others to chance.
    defined = [k for k, row in enumerate(rows) if row.validation.is_defined]
    order = sorted(defined, key=lambda k: -qualities[k])
    fronts = {axis.name: _front(rows, axis, qualities, defined) for axis in axes_of(unit)}
    ranked = [
        replace(
            row,
            rank=order.index(k) + 1 if k in order else None,
            fronts=tuple(name for name, front in fronts.items() if k in front),
        )
        for k, row in enumerate(rows)
    ]
    return Summary(
        plan.study.metric,
        tuple(plan.study.seeds),
        tuple(ranked),
        failed,
        plan.points[groups[0][0]].name if groups else None,
        effects(plan, finished),
        unit,
    )


def _row(
    plan: Plan, number: int, group: list[Finished], first: list[Finished], failed: dict[str, str], costs: Costing
) -> Row:
    point, metric = plan.points[number], plan.study.metric
    is_ranker = costs.unit == "impression"
    peaks = [f.record.peak_bytes for f in group if f.record.peak_bytes is not None]
    splits = [name for name in ("validation", "test") if all(name in f.splits for f in group)]
    itself = group[0].trial.point == first[0].trial.point
    return Row(
        name=point.name,
        title=point.title,
        label=point.label,
        settings=point.settings,
        seeds=tuple(f.trial.seed for f in group),
        rank=None,
        validation=estimate_of([group], "validation", metric),
        test=estimate_of([group], "test", metric) if "test" in splits else None,
        metrics={split: _means([f.splits[split].metrics for f in group]) for split in splits},
        difference=None if itself else _difference(group, first, "validation", metric),
        test_difference=None if itself or "test" not in splits else _difference(group, first, "test", metric),
        costs=costs,
        events_per_second=_median([f.record.events_per_second for f in group]),
        impressions_per_second=_median([f.record.targets_per_second for f in group]) if is_ranker else None,
        peak_bytes=max(peaks, default=None),
        train_seconds=float(np.mean([f.record.train_seconds for f in group])),
        resumed=any(f.record.attempts > 1 for f in group),
        failed=tuple(trial.name for trial in plan.of_point(number) if trial.name in failed),
    )


def _difference(group: list[Finished], first: list[Finished], split: str, metric: str) -> Estimate | None:
    """Return this point minus the first, under the seeds that both have, user by user if both have the same users."""
    base = {f.trial.seed: f for f in first if split in f.splits}
    ours = [f for f in group if f.trial.seed in base]
    return estimate_of([ours], split, metric, minus=[[base[f.trial.seed] for f in ours]]) if ours else None


def _means(metrics: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of every metric over seeds; None where a seed has no value."""
    means: dict[str, float | None] = {}
    for name in metrics[0]:
        values = [of_seed[name] for of_seed in metrics]
        means[name] = None if None in values else float(np.mean(np.asarray(values, dtype=np.float64)))
    return means


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _front(rows: list[Row], axis: Axis, qualities: Sequence[float], defined: Sequence[int]) -> set[int]:
    """Return the places of the rows on the front. qualities: more is better."""
    costs = {k: cost for k in defined if (cost := axis.of(rows[k])) is not None}
    sign = -1.0 if axis.more_is_better else 1.0
    known = list(costs)
    return {known[place] for place in pareto_front([sign * costs[k] for k in known], [qualities[k] for k in known])}
