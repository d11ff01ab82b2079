"""Effect of each setting of a grid, averaged over all others: its effect alone, from more trials than any one point has.

Of those seeds alone that every trial has finished under: so the values of a setting are compared under the same other settings,
seeds and users. What two settings make only together does not show here, but in the rows of the points.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.study.collect import Finished, estimate_of
from cluster.study.statistics import Estimate
from cluster.study.trials import Plan

VARIANT = "variant"


@dataclass(frozen=True)
class Effect:
    """setting: its key, or "variant"; num_trials: that are averaged; difference: to the setting's first value, none for itself."""

    setting: str
    value: Any
    num_trials: int
    validation: Estimate
    test: Estimate | None
    difference: Estimate | None


def effects(plan: Plan, finished: Mapping[str, Finished]) -> tuple[Effect, ...]:
    """Return the effects of every setting with several values, in the order of the study; empty unless there are two such settings.

    finished: by name of the trial.
    """
    unfinished = {trial.seed for trial in plan.trials if trial.name not in finished}
    trials = [
        [finished[trial.name] for trial in plan.of_point(number) if trial.seed not in unfinished]
        for number in range(len(plan.points))
    ]
    varied = _varied(plan)
    if len(varied) < 2 or not any(trials):
        return ()
    return tuple(effect for setting in varied for effect in _of_setting(setting, varied, trials, plan.study.metric))


def _varied(plan: Plan) -> dict[str, list[Any]]:
    """Return, for each setting with several values, its value at each point."""
    varied = {}
    if len(plan.study.variants) > 1:
        varied[VARIANT] = [point.label for point in plan.points]
    for key, values in plan.study.grid.items():
        if len(values) > 1:
            varied[key] = [point.settings[key] for point in plan.points]
    return varied


def _of_setting(
    setting: str, varied: Mapping[str, list[Any]], trials: list[list[Finished]], metric: str
) -> list[Effect]:
    of_points = [_text(value) for value in varied[setting]]  # a value may be a table
    values = dict(zip(of_points, varied[setting], strict=True))
    with_value = {
        text: [of_seeds for of_seeds, other in zip(trials, of_points, strict=True) if other == text] for text in values
    }
    first = next(iter(with_value.values()))
    tested = all("test" in trial.splits for of_seeds in trials for trial in of_seeds)
    return [
        Effect(
            setting,
            values[text],
            sum(map(len, points)),
            estimate_of(points, "validation", metric),
            estimate_of(points, "test", metric) if tested else None,
            None if points is first else estimate_of(points, "validation", metric, minus=first),
        )
        for text, points in with_value.items()
    ]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
