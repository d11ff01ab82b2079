"""Scored impressions and the exact sums and counts that metrics are computed from. Pure numpy.

With z the logit of an impression, p = 1 / (1 + exp(-z)), y its label (0 or 1) and w its weight. Weights are 1, or compensate for
impressions that the log left out.

The invariant: sums are whole numbers of very small units, and pairs are counted, so no result depends on the order of impressions
or on how ranks share them. The collectives are in over_ranks.py, the metrics in metrics.py.

Arrays may be in temporary files (trainer.evaluation.spooled). All functions go over blocks of them, or over blocks of whole users.
So they need memory for a few blocks, and for the impressions of one user.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from trainer.evaluation.sorting import sorted_with_places
from trainer.evaluation.spooled import (
    Spool,
    blocks,
    cumulated,
    cumulated_from_end,
    filled,
    taken,
    whole_key_blocks,
)

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

    @cached_property
    def counts(self) -> "ScoreCounts":
        """The impressions grouped by equal scores."""
        return count_scores(self)

    @cached_property
    def by_user(self) -> "UserAuc":
        """The auc of each user."""
        return auc_of_users(self)

    def take(self, places: np.ndarray | slice) -> "Judged":
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
    sums = Sums()
    for block in blocks(judged.scores.size):
        sums += _sums_of_block(judged.take(block))
    by_user = judged.by_user
    for users in blocks(by_user.user.size):
        auc, weight = by_user.auc[users], by_user.weight[users]
        known = ~np.isnan(auc)
        sums += Sums(user_auc=_units(auc[known] * weight[known]), user_weight=_units(weight[known]))
    return sums


def _sums_of_block(judged: Judged) -> Sums:
    """Return the sums over impressions, without those over users."""
    finite = np.isfinite(judged.scores)
    logits = np.clip(np.where(finite, judged.scores, 0.0), -_LARGEST_LOGIT, _LARGEST_LOGIT)
    return Sums(
        impressions=judged.scores.size,
        not_finite=int((~finite).sum()),
        weight=_units(judged.weight),
        positives=_units(np.where(judged.positive, judged.weight, 0.0)),
        loss=_units(judged.weight * log_losses(logits, judged.positive)),
        predicted=_units(judged.weight * probabilities(logits)),
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
    size = judged.scores.size

    def weights(of_positives: bool) -> np.ndarray:
        return filled(
            size,
            np.float64,
            lambda block: np.where(judged.positive[block] == of_positives, judged.weight[block], 0.0),
        )

    scores = filled(size, np.float64, lambda block: numbers_of(judged.scores[block]))
    return _grouped(scores, weights(True), weights(False))


def numbers_of(scores: np.ndarray) -> np.ndarray:
    """Return scores with those that are not a number as the lowest."""
    return np.where(np.isnan(scores), -np.inf, scores)


class MergedCounts:
    """Counts of disjoint sets of impressions, added one after another, in temporary files where they are many."""

    def __init__(self) -> None:
        self._scores, self._positives, self._negatives = (Spool(np.float64) for _ in range(3))

    def add(self, counts: ScoreCounts) -> None:
        """Add the counts of some impressions."""
        for block in blocks(counts.scores.size):
            self._scores.append(counts.scores[block])
            self._positives.append(counts.positives[block])
            self._negatives.append(counts.negatives[block])

    def merged(self) -> ScoreCounts:
        """Return the counts of all impressions. Nothing can be added later."""
        return _grouped(self._scores.array(), self._positives.array(), self._negatives.array())


def merge_counts(counts: Iterable[ScoreCounts]) -> ScoreCounts:
    """Merge the counts of disjoint sets of impressions."""
    merged = MergedCounts()
    for part in counts:
        merged.add(part)
    return merged.merged()


def _grouped(scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> ScoreCounts:
    """Add the weights of equal scores, (n,) each in any order."""
    ordered, places = sorted_with_places(scores)
    first = _changes_of(ordered)
    sums = (_sums_from(taken(values, places), first) for values in (positives, negatives))
    return ScoreCounts(taken(ordered, first), *sums)


def pairs_in_order(counts: ScoreCounts, negatives_below: float = 0.0) -> float:
    """Return the weight of pairs of a positive and a negative that scores lower; pairs with equal scores count half.

    negatives_below: the weight of other negatives with scores below all of these.
    """
    total = cumulated(counts.negatives)

    def pairs(block: slice) -> np.ndarray:
        negatives = counts.negatives[block]
        below = negatives_below + total[block] - negatives
        of_groups: np.ndarray = counts.positives[block] * (below + negatives / 2)
        return of_groups

    return float(filled(total.size, np.float64, pairs).sum())


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
    positives, negatives = cumulated_from_end(counts.positives), cumulated_from_end(counts.negatives)
    units = 0
    for block in blocks(positives.size):
        from_top = positives[block] + positives_above
        all_from_top = negatives[block] + negatives_above + from_top
        own = counts.positives[block]
        some = own > 0
        units += _units(own[some] * (from_top[some] / all_from_top[some]))
    return units


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
    users, aucs, weights = Spool(judged.user.dtype), Spool(np.float64), Spool(np.float64)
    negatives_before = 0.0
    for block in whole_key_blocks(judged.user):
        own = judged.take(block)
        ties = _ties(own.user, own)
        total = np.cumsum(np.concatenate(([negatives_before], ties.negatives)))
        negatives_before = float(total[-1])
        by_user = _auc_of_ties(ties, total[1:] - ties.negatives)
        users.append(by_user.user)
        aucs.append(by_user.auc)
        weights.append(by_user.weight)
    return UserAuc(users.array(), aucs.array(), weights.array())


def _auc_of_ties(ties: "_Ties", before: np.ndarray) -> UserAuc:
    """Return the auc of each user. before: the weight of all negatives before each group of ties, also of earlier users."""
    first = _changes(ties.user)
    size = np.diff(np.append(first, ties.user.size))
    positives, negatives = _sums_from(ties.positives, first), _sums_from(ties.negatives, first)
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
    scores = numbers_of(judged.scores)
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


def _changes_of(values: np.ndarray) -> np.ndarray:
    """Return the places where a long array changes its value, including the first place."""
    places = Spool(np.int64)
    for block in blocks(values.size):
        own = values[max(0, block.start - 1) : block.stop]
        changed = _changes(own)
        places.append(changed if block.start == 0 else changed[1:] + block.start - 1)
    return places.array()


def _sums_from(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the sum of each segment that begins at first[k] and ends where the next begins."""

    def sums(block: slice) -> np.ndarray:
        if not first.size:
            return np.zeros(0)
        begin = int(first[block.start])
        end = int(first[block.stop]) if block.stop < first.size else values.size
        of_block: np.ndarray = np.add.reduceat(values[begin:end], first[block] - begin)
        return of_block

    return filled(first.size, np.float64, sums)
