"""From finished trials to one row per point: means over seeds with intervals, what it cost, and how it differs from the first.

Points are ranked by the validation split. Test figures stand beside and decide nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.study.collect import Finished, estimate_of
from cluster.study.costing import Costing
from cluster.study.effects import Effect, effects
from cluster.study.statistics import Estimate, pareto_front
from cluster.study.trials import Plan

# Name, whether more is better, and what a plot calls it, of what quality is weighed against.
AXES = {
    "training_flops_per_event": (False, "training FLOPs per event"),
    "events_per_second": (True, "events/s in training"),
    "peak_bytes": (False, "peak memory of a worker"),
}
SHORT = {"training_flops_per_event": "FLOPs", "events_per_second": "speed", "peak_bytes": "memory"}


@dataclass(frozen=True)
class Row:
    """A point. rank: from 1 by the validation metric; difference: to the first point that has a result, none for itself.

    title: its name with what it stands for; costs: as costing says; events_per_second: median over seeds; peak_bytes: largest;
    train_seconds: mean; fronts: of AXES, on which this point lies. failed: trials without a result.
    """

    name: str
    title: str
    label: str
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    rank: int
    validation: Estimate
    test: Estimate | None
    metrics: dict[str, dict[str, float]]
    difference: Estimate | None
    test_difference: Estimate | None
    costs: Costing
    events_per_second: float | None
    peak_bytes: int | None
    train_seconds: float
    resumed: bool
    fronts: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def on_axis(self, axis: str) -> float | None:
        """Its place on one of AXES; none where it is not known."""
        if axis == "training_flops_per_event":
            return self.costs.training_flops_per_event
        value: float | None = getattr(self, axis)
        return value


@dataclass(frozen=True)
class Summary:
    """rows: in the order of the study; failed: by trial, why it has no result; first: the point that others are compared with.

    effects: of each setting of a grid.
    """

    metric: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    failed: dict[str, str]
    first: str | None
    effects: tuple[Effect, ...]


def summarize(
    plan: Plan, finished: Mapping[str, Finished], failed: dict[str, str], costs: Sequence[Costing]
) -> Summary:
    """finished, failed: by name of the trial; costs: by point."""
    groups = [
        (number, [finished[trial.name] for trial in plan.of_point(number) if trial.name in finished])
        for number in range(len(plan.points))
    ]
    groups = [(number, group) for number, group in groups if group]
    first = groups[0][1] if groups else []
    rows = [_row(plan, number, group, first, failed, costs[number]) for number, group in groups]
    # A mean that is not defined is never the best: compared with, it would leave the order to chance.
    order = sorted(range(len(rows)), key=lambda k: (math.isnan(rows[k].validation.mean), -rows[k].validation.mean))
    fronts = {axis: _front(rows, axis) for axis in AXES}
    ranked = [
        replace(row, rank=order.index(k) + 1, fronts=tuple(axis for axis in AXES if k in fronts[axis]))
        for k, row in enumerate(rows)
    ]
    return Summary(
        plan.study.metric,
        tuple(plan.study.seeds),
        tuple(ranked),
        failed,
        plan.points[groups[0][0]].name if groups else None,
        effects(plan, finished),
    )


def _row(
    plan: Plan, number: int, group: list[Finished], first: list[Finished], failed: dict[str, str], costs: Costing
) -> Row:
    point, metric = plan.points[number], plan.study.metric
    speeds = [f.record.events_per_second for f in group if f.record.events_per_second is not None]
    peaks = [f.record.peak_bytes for f in group if f.record.peak_bytes is not None]
    splits = [name for name in ("validation", "test") if all(name in f.splits for f in group)]
    itself = group[0].trial.point == first[0].trial.point
    return Row(
        name=point.name,
        title=point.title,
        label=point.label,
        settings=point.settings,
        seeds=tuple(f.trial.seed for f in group),
        rank=0,
        validation=estimate_of([group], "validation", metric),
        test=estimate_of([group], "test", metric) if "test" in splits else None,
        metrics={split: _means([f.splits[split].metrics for f in group]) for split in splits},
        difference=None if itself else _difference(group, first, "validation", metric),
        test_difference=None if itself or "test" not in splits else _difference(group, first, "test", metric),
        costs=costs,
        events_per_second=float(np.median(speeds)) if speeds else None,
        peak_bytes=max(peaks, default=None),
        train_seconds=float(np.mean([f.record.train_seconds for f in group])),
        resumed=any(f.record.attempts > 1 for f in group),
        failed=tuple(trial.name for trial in plan.of_point(number) if trial.name in failed),
    )


def _difference(group: list[Finished], first: list[Finished], split: str, metric: str) -> Estimate | None:
    """Of this point minus the first, under the seeds that both have, user by user if both have the same users."""
    base = {f.trial.seed: f for f in first if split in f.splits}
    ours = [f for f in group if f.trial.seed in base]
    return estimate_of([ours], split, metric, minus=[[base[f.trial.seed] for f in ours]]) if ours else None


def _means(metrics: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}


def _front(rows: list[Row], axis: str) -> set[int]:
    known = [k for k, row in enumerate(rows) if row.on_axis(axis) is not None]
    sign = -1.0 if AXES[axis][0] else 1.0
    costs = [sign * float(rows[k].on_axis(axis) or 0.0) for k in known]
    return {known[place] for place in pareto_front(costs, [rows[k].validation.mean for k in known])}
