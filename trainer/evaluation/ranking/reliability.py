"""Reliability of probabilities: groups of similar predictions with their rate of positives, and ROC curves. Pure numpy."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from trainer.evaluation.confidence import wilson
from trainer.evaluation.ranking.judged import Judged, ScoreCounts, probabilities
from trainer.evaluation.sorting import at_shares, sorted_with_places
from trainer.evaluation.spooled import blocks, cumulated_from_end, filled

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
    size = judged.scores.size
    if size == 0 or not all(np.isfinite(judged.scores[block]).all() for block in blocks(size)):
        return []
    chance = filled(size, np.float64, lambda block: probabilities(judged.scores[block]))
    edges = np.unique(at_shares(sorted_with_places(chance)[0], np.linspace(0, 1, NUM_GROUPS + 1)[1:-1]))
    low, high = np.full((2, edges.size + 1), [[np.inf], [-np.inf]])
    impressions = np.zeros(edges.size + 1, np.int64)
    sums = [np.zeros(edges.size + 1) for _ in range(4)]
    for block in blocks(size):
        own, weight = chance[block], judged.weight[block]
        group = np.searchsorted(edges, own, side="left")
        np.minimum.at(low, group, own)
        np.maximum.at(high, group, own)
        impressions += np.bincount(group, minlength=impressions.size)
        # One value after another, so that the sums do not depend on blocks.
        for total, values in zip(sums, (weight, weight**2, weight * own, weight * judged.positive[block]), strict=True):
            np.add.at(total, group, values)
    there = np.flatnonzero(sums[0])
    weight, squared, predicted, positive = (total[there] for total in sums)
    observed = positive / weight
    bounds = np.stack(wilson(observed, weight**2 / squared), axis=1)
    columns = (low[there], high[there], impressions[there], predicted / weight, observed, bounds)
    return [Group(*group) for group in zip(*(column.tolist() for column in columns), strict=True)]


def roc(counts: ScoreCounts, most_points: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return (false positive rates, true positive rates) from (0, 0) to (1, 1), at most about `most_points` of them."""
    curves = []
    for weights in (counts.negatives, counts.positives):
        size = weights.size
        passed = cumulated_from_end(weights)[::-1]
        whole = passed[-1] if size else 0.0
        curves.append(filled(size + 1, np.float64, partial(_share_passed, passed, whole)))
    # Points at about equal distances along the curve.
    along = filled(curves[0].size, np.float64, lambda some: curves[0][some] + curves[1][some])
    places = np.unique(np.searchsorted(along, np.linspace(0, 2, most_points)).clip(max=along.size - 1))
    return curves[0][places], curves[1][places]


def _share_passed(passed: np.ndarray, whole: float, some: slice) -> np.ndarray:
    """Return some entries of the array that has a 0 before the passed weights, as shares of the whole."""
    first = [0.0] if some.start == 0 else []
    shares: np.ndarray = np.concatenate((first, passed[max(0, some.start - 1) : some.stop - 1])) / whole
    return shares
