"""Reliability of probabilities: groups of similar predictions with their rate of positives, and ROC curves. Pure numpy."""

from dataclasses import dataclass

import numpy as np

from trainer.evaluation.confidence import wilson
from trainer.evaluation.ranking.judged import Judged, ScoreCounts, probabilities

NUM_GROUPS = 20


@dataclass(frozen=True)
class Group:
    """Impressions with similar predictions."""

    low: float
    """The smallest prediction."""
    high: float
    """The largest prediction."""
    impressions: int
    """Number of impressions."""
    predicted: float
    """The weighted mean prediction."""
    observed: float
    """The weighted rate of positives."""
    interval: list[float]
    """The 95 % interval of the rate."""


def reliability(judged: Judged) -> list[Group]:
    """Return up to NUM_GROUPS groups with about equally many impressions; equal predictions are in one group.

    Intervals are Wilson's for independent impressions; weighted ones count as (sum w)^2 / sum w^2.
    """
    if judged.scores.size == 0 or not np.isfinite(judged.scores).all():
        return []
    chance = probabilities(judged.scores)
    edges = np.unique(np.quantile(chance, np.linspace(0, 1, NUM_GROUPS + 1)[1:-1], method="inverted_cdf"))
    group = np.searchsorted(edges, chance, side="left")
    weight, squared, predicted, positive = (
        np.bincount(group, values)
        for values in (judged.weight, judged.weight**2, judged.weight * chance, judged.weight * judged.positive)
    )
    there = np.flatnonzero(weight)
    observed = positive[there] / weight[there]
    low, high = wilson(observed, weight[there] ** 2 / squared[there])
    return [
        Group(
            float(chance[group == number].min()),
            float(chance[group == number].max()),
            int((group == number).sum()),
            float(predicted[number] / weight[number]),
            float(observed[place]),
            [float(low[place]), float(high[place])],
        )
        for place, number in enumerate(there)
    ]


def roc(counts: ScoreCounts, most_points: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return (false positive rates, true positive rates) from (0, 0) to (1, 1), at most about `most_points` of them."""
    curves = []
    for weights in (counts.negatives, counts.positives):
        passed = np.concatenate(([0.0], np.cumsum(weights[::-1])))
        curves.append(passed / passed[-1])
    # Points at about equal distances along the curve.
    along = curves[0] + curves[1]
    places = np.unique(np.searchsorted(along, np.linspace(0, 2, most_points)).clip(max=along.size - 1))
    return curves[0][places], curves[1][places]
