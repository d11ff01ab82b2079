"""Scored impressions and the exact sums and counts that metrics are computed from. Pure numpy.

With z the logit of an impression, p = 1 / (1 + exp(-z)), y its label (0 or 1) and w its weight. Weights are 1, or compensate for
impressions that the log left out.

The invariant: sums are whole numbers of very small units, and pairs are counted, so no result depends on the order of impressions
or on how ranks share them. The collectives are in evaluate.py, the metrics in metrics.py.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

UNITS = 1 << 32  # units per 1.0 in exact sums
_LARGEST_LOGIT = 1000.0  # beyond it p is 0 or 1 in float64, and a single loss could overflow the sum
_CHUNK = 1 << 20  # values summed at a time, so that the units of a sum fit into 63 bits


@dataclass(frozen=True)
class Judged:
    """M impressions on which a label is defined, with their scores."""

    user: np.ndarray
    """(M,) the number of the user, ascending."""
    scores: np.ndarray
    """(M,) float64 logits."""
    positive: np.ndarray
    """(M,) bool."""
    weight: np.ndarray
    """(M,) float64."""

    def take(self, places: np.ndarray) -> "Judged":
        """Return the impressions at the places, or where a mask is true; users stay ascending if places do."""
        return Judged(self.user[places], self.scores[places], self.positive[places], self.weight[places])


@dataclass(frozen=True)
class Sums:
    """Exact sums for all metrics except areas under curves. Weights, losses and probabilities are in units of 1 / UNITS."""

    impressions: int = 0
    """Number of impressions."""
    not_finite: int = 0
    """Impressions with a score that is not finite. They have no loss, so a total with any of them has none either."""
    weight: int = 0
    """Sum of weights."""
    positives: int = 0
    """Sum of the weights of positives."""
    loss: int = 0
    """Sum of weight times log loss."""
    predicted: int = 0
    """Sum of weight times predicted probability."""
    user_auc: int = 0
    """Sum of auc times weight over users with both classes."""
    user_weight: int = 0
    """Sum of weights over users with both classes."""

    def __add__(self, other: "Sums") -> "Sums":
        """Add field by field."""
        return Sums(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(Sums)))


@dataclass(frozen=True)
class ScoreCounts:
    """Impressions grouped by equal scores, K groups."""

    scores: np.ndarray
    """(K,) float64, ascending."""
    positives: np.ndarray
    """(K,) summed weights of positives."""
    negatives: np.ndarray
    """(K,) summed weights of negatives."""


def sums_of(judged: Judged) -> Sums:
    """Return the sums of some impressions. All impressions of a user must be in one call."""
    finite = np.isfinite(judged.scores)
    logits = np.clip(np.where(finite, judged.scores, 0.0), -_LARGEST_LOGIT, _LARGEST_LOGIT)
    by_user = auc_of_users(judged)
    known = ~np.isnan(by_user.auc)
    return Sums(
        impressions=judged.scores.size,
        not_finite=int((~finite).sum()),
        weight=_units(judged.weight),
        positives=_units(np.where(judged.positive, judged.weight, 0.0)),
        loss=_units(judged.weight * log_losses(logits, judged.positive)),
        predicted=_units(judged.weight * probabilities(logits)),
        user_auc=_units(by_user.auc[known] * by_user.weight[known]),
        user_weight=_units(by_user.weight[known]),
    )


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-z)) without overflow, float64."""
    small = np.exp(-np.abs(logits))
    chance: np.ndarray = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return chance


def log_losses(logits: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return -log of the probability of the label, computed from logits, so that it is exact where p is close to 0 or 1."""
    wrong = np.where(positive, -logits, logits)
    losses: np.ndarray = np.maximum(wrong, 0.0) + np.log1p(np.exp(-np.abs(logits)))
    return losses


def _units(values: np.ndarray) -> int:
    """Return the sum in units of 1 / UNITS; each value is rounded separately."""
    starts = range(0, values.size, _CHUNK)
    return sum(int(np.rint(values[start : start + _CHUNK] * UNITS).astype(np.int64).sum()) for start in starts)


def ratio(above: float, below: float) -> float:
    """Return above / below, NaN if `below` is 0."""
    return above / below if below else math.nan


def count_scores(judged: Judged) -> ScoreCounts:
    """Group impressions by score. A score that is not a number is lower than all others."""
    ties = _ties(np.zeros(judged.scores.size, np.int64), judged)
    return ScoreCounts(ties.scores, ties.positives, ties.negatives)


def merge_counts(counts: Iterable[ScoreCounts]) -> ScoreCounts:
    """Merge the counts of disjoint sets of impressions."""
    parts = list(counts)
    scores = np.concatenate([c.scores for c in parts])
    order = np.argsort(scores, kind="stable")
    scores = scores[order]
    first = _changes(scores)
    positives, negatives = (
        _sums_from(np.concatenate([getattr(c, name) for c in parts])[order], first)
        for name in ("positives", "negatives")
    )
    return ScoreCounts(scores[first], positives, negatives)


def pairs_in_order(counts: ScoreCounts, negatives_below: float = 0.0) -> float:
    """Return the weight of pairs of a positive and a negative that scores lower; pairs with equal scores count half.

    negatives_below: the weight of other negatives with scores below all of these.
    """
    below = negatives_below + np.cumsum(counts.negatives) - counts.negatives
    return float((counts.positives * (below + counts.negatives / 2)).sum())


def auc_of(counts: ScoreCounts) -> float:
    """Return the auc of the counts; NaN without positives or without negatives."""
    return share_of_pairs(pairs_in_order(counts), float(counts.positives.sum()) * float(counts.negatives.sum()))


def precision_sum(counts: ScoreCounts, positives_above: float = 0.0, negatives_above: float = 0.0) -> int:
    """Return the sum over positives of the precision among all impressions with at least their score, in units of 1 / UNITS.

    Each group of equal scores is rounded separately, so sums over ranges of scores add up exactly.

    Args:
        counts: the impressions.
        positives_above: the weight of other positives, with scores above all of these.
        negatives_above: the weight of other negatives, with scores above all of these.
    """
    from_top = np.cumsum(counts.positives[::-1])[::-1] + positives_above
    all_from_top = np.cumsum(counts.negatives[::-1])[::-1] + negatives_above + from_top
    some = counts.positives > 0
    return _units(counts.positives[some] * (from_top[some] / all_from_top[some]))


@dataclass(frozen=True)
class Areas:
    """Areas under the curves of a ranking by score; NaN where one is not defined."""

    auc: float
    """The area under the ROC curve: the share of pairs in order."""
    pr_auc: float
    """The average precision: the area under the precision-recall curve as a step function."""


def areas_of(counts: ScoreCounts) -> Areas:
    """Return the areas of the counts."""
    return Areas(auc_of(counts), mean_precision(precision_sum(counts), float(counts.positives.sum())))


def mean_precision(precisions: int, positives: float) -> float:
    """Return the average precision from a precision_sum; NaN without positives."""
    # Rounding to units may push the mean beyond 1.
    return min(ratio(precisions / UNITS, positives), 1.0)


def share_of_pairs(in_order: float, all_pairs: float) -> float:
    """Return the auc of these pairs; NaN if there are none."""
    # Fractional weights are added in different orders above and below, so rounding may push the share beyond 1.
    return min(ratio(in_order, all_pairs), 1.0)


@dataclass(frozen=True)
class UserAuc:
    """The auc of each of U users with an impression."""

    user: np.ndarray
    """(U,) numbers of users, ascending."""
    auc: np.ndarray
    """(U,) NaN for users with one class only."""
    weight: np.ndarray
    """(U,) summed weights of the user's impressions."""


def auc_of_users(judged: Judged) -> UserAuc:
    """Return the auc over each user's own impressions."""
    ties = _ties(judged.user, judged)
    first = _changes(ties.user)
    size = np.diff(np.append(first, ties.user.size))
    positives, negatives = _sums_from(ties.positives, first), _sums_from(ties.negatives, first)
    before = np.cumsum(ties.negatives) - ties.negatives
    below = before - np.repeat(before[first], size)
    pairs = _sums_from(ties.positives * (below + ties.negatives / 2), first)
    both = (positives > 0) & (negatives > 0)
    # At most 1: see share_of_pairs.
    auc = np.where(both, np.minimum(pairs / np.where(both, positives * negatives, 1.0), 1.0), np.nan)
    return UserAuc(ties.user[first], auc, positives + negatives)


@dataclass(frozen=True)
class _Ties:
    """Impressions grouped by user and equal scores, ascending by user and score."""

    user: np.ndarray
    scores: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


def _ties(user: np.ndarray, judged: Judged) -> _Ties:
    """Group impressions by the given user numbers and by score."""
    scores = np.where(np.isnan(judged.scores), -np.inf, judged.scores)
    order = np.lexsort((scores, user))
    user, scores, weight, positive = user[order], scores[order], judged.weight[order], judged.positive[order]
    first = _changes(user, scores)
    return _Ties(
        user[first],
        scores[first],
        _sums_from(np.where(positive, weight, 0.0), first),
        _sums_from(np.where(positive, 0.0, weight), first),
    )


def _changes(*columns: np.ndarray) -> np.ndarray:
    """Return the places where any of the columns changes its value, including the first place."""
    changed = np.ones(columns[0].size, dtype=np.bool_)
    changed[1:] = False
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changed)


def _sums_from(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the sum of each segment that begins at first[k] and ends where the next begins."""
    sums: np.ndarray = np.add.reduceat(values, first) if first.size else np.zeros(0)
    return sums
