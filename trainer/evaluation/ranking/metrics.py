"""Metrics of impressions that were scored for one label: exact, and sums, so that it does not matter how they are shared.

With z the logit of an impression, p = 1 / (1 + exp(-z)), y its label (0 or 1) and w its weight:

auc          the chance that a positive scores higher than a negative; equal scores count half (Mann & Whitney 1947)
gauc         the mean of the users' own auc over users who have both, weighted by their impressions (Zhu et al. 2017,
             arXiv 1706.06978, eq. 7)
logloss      the mean of -y log p - (1 - y) log (1 - p), in nats
ne           logloss over the entropy of the mean label: what is left of the uncertainty of who knows only the mean (He et al. 2014)
calibration  the sum of p over the sum of y

A metric that is not defined, such as the auc of positives alone, is NaN. Weights are 1, or what makes up for impressions that
the log left out. The invariant: sums are whole numbers of very small units, and pairs are counted, so no result depends on the
order of impressions or on how ranks share them. Pure numpy; the collectives are those of evaluate.py.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

UNITS = 1 << 32  # in one: what sums are counted in
_LARGEST_LOGIT = 1000.0  # beyond it p is 0 or 1 in float64, and the loss of one impression would fill the sum
_CHUNK = 1 << 20  # summed at a time, so that the units of a sum fit into 63 bits


@dataclass(frozen=True)
class Judged:
    """Impressions on which a label is defined, (M,) each. user: ascending numbers; scores: logits, float64; positive: bool."""

    user: np.ndarray
    scores: np.ndarray
    positive: np.ndarray
    weight: np.ndarray

    def take(self, places: np.ndarray) -> "Judged":
        """Those at the places, or where a mask is true; users stay ascending if places do."""
        return Judged(self.user[places], self.scores[places], self.positive[places], self.weight[places])


@dataclass(frozen=True)
class Sums:
    """What all metrics but auc are made of. Sums of weights, losses and probabilities are in units of 1 / UNITS.

    not_finite: impressions whose score is no finite number: of these there is no loss, so there is none of all.
    """

    impressions: int = 0
    not_finite: int = 0
    weight: int = 0
    positives: int = 0
    loss: int = 0
    predicted: int = 0
    user_auc: int = 0  # of users with both: their auc times their weight
    user_weight: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(Sums)))


@dataclass(frozen=True)
class ScoreCounts:
    """Impressions with equal scores put together. scores: (K,) float64, ascending; positives, negatives: (K,) summed weights."""

    scores: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


def sums_of(judged: Judged) -> Sums:
    """Of some impressions; those of a user must not be spread over several calls."""
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
    """1 / (1 + exp(-z)) without overflow, float64."""
    small = np.exp(-np.abs(logits))
    chance: np.ndarray = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    return chance


def log_losses(logits: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """-log of the probability of what happened, from logits, so that it stays exact where p is next to 0 or 1."""
    wrong = np.where(positive, -logits, logits)
    losses: np.ndarray = np.maximum(wrong, 0.0) + np.log1p(np.exp(-np.abs(logits)))
    return losses


def _units(values: np.ndarray) -> int:
    """The sum in units of 1 / UNITS, each value rounded on its own."""
    starts = range(0, values.size, _CHUNK)
    return sum(int(np.rint(values[start : start + _CHUNK] * UNITS).astype(np.int64).sum()) for start in starts)


def metrics_of(sums: Sums, auc: float) -> dict[str, float]:
    """All metrics of one label, by name."""
    losses = sums.loss if sums.not_finite == 0 else math.nan
    predicted = sums.predicted if sums.not_finite == 0 else math.nan
    logloss = _ratio(losses, sums.weight)
    return {
        "auc": auc,
        "gauc": _ratio(sums.user_auc, sums.user_weight),
        "logloss": logloss,
        "ne": _ratio(logloss, entropy(_ratio(sums.positives, sums.weight))),
        "calibration": _ratio(predicted, sums.positives),
    }


def entropy(rate: float) -> float:
    """Of a label that is positive at this rate, in nats."""
    if not 0.0 < rate < 1.0:
        return 0.0
    return -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def count_scores(judged: Judged) -> ScoreCounts:
    """A score that is not a number is lower than all others."""
    ties = _ties(np.zeros(judged.scores.size, np.int64), judged)
    return ScoreCounts(ties.scores, ties.positives, ties.negatives)


def merge_counts(counts: Iterable[ScoreCounts]) -> ScoreCounts:
    """Counts of several lots of impressions as one."""
    found = list(counts)
    scores = np.concatenate([c.scores for c in found])
    order = np.argsort(scores, kind="stable")
    scores = scores[order]
    first = _changes(scores)
    positives, negatives = (
        _sums_from(np.concatenate([getattr(c, name) for c in found])[order], first)
        for name in ("positives", "negatives")
    )
    return ScoreCounts(scores[first], positives, negatives)


def pairs_in_order(counts: ScoreCounts, negatives_below: float = 0.0) -> float:
    """Pairs of a positive and a negative that scores lower, and half of those that score alike, by their weights.

    negatives_below: the weight of further negatives with lower scores than all of these.
    """
    below = negatives_below + np.cumsum(counts.negatives) - counts.negatives
    return float((counts.positives * (below + counts.negatives / 2)).sum())


def auc_of(counts: ScoreCounts) -> float:
    """NaN without positives or without negatives."""
    return share_of_pairs(pairs_in_order(counts), float(counts.positives.sum()) * float(counts.negatives.sum()))


def share_of_pairs(in_order: float, all_pairs: float) -> float:
    """Return the auc of these pairs; NaN if there are none."""
    # Weights that are no whole numbers are rounded when they are added: in another order, so that the share may exceed 1.
    return min(_ratio(in_order, all_pairs), 1.0)


@dataclass(frozen=True)
class UserAuc:
    """user: (U,) those with any impression, ascending; auc: (U,) NaN for users with one class; weight: (U,) of impressions."""

    user: np.ndarray
    auc: np.ndarray
    weight: np.ndarray


def auc_of_users(judged: Judged) -> UserAuc:
    """The auc of each user's own impressions."""
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
    """Impressions of one user with equal scores put together, ascending by user and score."""

    user: np.ndarray
    scores: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


def _ties(user: np.ndarray, judged: Judged) -> _Ties:
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
    """Where some of the columns has another value than just before, the first place included."""
    changed = np.ones(columns[0].size, dtype=np.bool_)
    changed[1:] = False
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changed)


def _sums_from(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The sum of each stretch that begins at first[k] and ends where the next begins."""
    sums: np.ndarray = np.add.reduceat(values, first) if first.size else np.zeros(0)
    return sums
