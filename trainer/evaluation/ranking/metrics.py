"""Metrics of impressions scored for one label, as one tuple: computed from exact sums, with intervals over users.

With z the logit of an impression, p = 1 / (1 + exp(-z)), y its label (0 or 1) and w its weight:

auc          the probability that a positive scores higher than a negative; equal scores count half (Mann & Whitney 1947)
pr_auc       the average precision: the mean over positives of the precision among the impressions with at least their score
             (Manning, Raghavan & Schutze 2008, section 8.4; as scikit-learn has it, without interpolation)
gauc         the mean of each user's own auc over users with both classes, weighted by their impressions (Zhu et al. 2017,
             arXiv 1706.06978, eq. 7)
logloss      the mean of -y log p - (1 - y) log (1 - p), in nats
ne           normalised entropy: log loss relative to always predicting the mean label (He et al. 2014)
calibration  the sum of p over the sum of y

A metric that is not defined, such as the auc of positives alone, is NaN.

Each metric has an influence function: the metric is written as a mean over users, up to terms that vanish: estimate + sum over u of
d_u. For auc the d_u are sums of DeLong's placements (DeLong et al. 1988) over the user's impressions, as in Obuchowski 1997; with
one impression per user the resulting error is DeLong's, up to factors such as U / (U - 1).
For pr_auc they are the derivatives by the weights of impressions: more weight of one changes the precision at each positive that
it is ranked above. intervals.py turns them into intervals.
Pure numpy. Like the impressions, terms of users may be in temporary files, and are computed for some users at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trainer.evaluation.confidence import NOT_NEGATIVE, SHARE
from trainer.evaluation.metric import Metric
from trainer.evaluation.ranking.judged import (
    Areas,
    Judged,
    ScoreCounts,
    Sums,
    auc_of,
    log_losses,
    numbers_of,
    probabilities,
    ratio,
)
from trainer.evaluation.spooled import chosen, cumulated, cumulated_from_end, filled, spooled, whole_key_blocks

OfUsers = Callable[[slice], np.ndarray]  # a term of each of some users
OfImpressions = Callable[[slice], np.ndarray]  # a value of each of some impressions


@dataclass(frozen=True)
class Totals:
    """Inputs from which the value of each metric is computed."""

    sums: Sums
    areas: Areas
    """Areas under curves; NaN where one is not defined."""

    @property
    def logloss(self) -> float:
        """The mean log loss; NaN if a score is not finite."""
        return ratio(self.sums.loss if self.sums.not_finite == 0 else math.nan, self.sums.weight)


@dataclass(frozen=True)
class UserTerms:
    """Inputs from which the influence of each of U users on each metric is computed."""

    judged: Judged
    users: np.ndarray
    """(U,) ascending numbers of users; one without impressions has terms of 0."""

    @cached_property
    def weights(self) -> np.ndarray:
        """(U,) summed weights of impressions."""
        return self.sums(lambda some: np.ones(self.judged.scores[some].size))

    @cached_property
    def positives(self) -> np.ndarray:
        """(U,) summed weights of positives."""
        return self.sums(lambda some: self.judged.positive[some].astype(np.float64))

    @cached_property
    def losses(self) -> np.ndarray:
        """(U,) summed weighted log losses."""
        return self.sums(lambda some: log_losses(self.judged.scores[some], self.judged.positive[some]))

    @property
    def weight(self) -> float:
        """The weight of all impressions."""
        return float(self.weights.sum())

    @property
    def positive(self) -> float:
        """The weight of all positives."""
        return float(self.positives.sum())

    @property
    def rate(self) -> float:
        """The rate of positives."""
        return self.positive / self.weight

    @property
    def logloss(self) -> float:
        """The mean log loss."""
        return float(self.losses.sum()) / self.weight

    def sums(self, values: OfImpressions) -> np.ndarray:
        """Return the weighted sum of a value of each impression over each user's impressions, (U,) float64."""
        sums = spooled(self.users.size, np.float64)
        for some in whole_key_blocks(self.judged.user):
            place = np.searchsorted(self.users, self.judged.user[some])
            if place.size:
                first, stop = int(place[0]), int(place[-1]) + 1
                sums[first:stop] = np.bincount(place - first, self.judged.weight[some] * values(some), stop - first)
        return sums


@dataclass(frozen=True, kw_only=True)
class ImpressionMetric(Metric):
    """A metric of scored impressions."""

    of_totals: Callable[[Totals], float]
    """The value of the metric; NaN if it is not defined."""
    influence: Callable[[UserTerms], OfUsers | None]
    """The terms d_u of users; None if the metric is not defined."""
    independent_users: Callable[[Judged], int]
    """The number of users that the metric is estimated from."""
    has_label: bool = True


def entropy(rate: float) -> float:
    """Return the entropy of a label that is positive at this rate, in nats."""
    if not 0.0 < rate < 1.0:
        return 0.0
    return -rate * math.log(rate) - (1.0 - rate) * math.log1p(-rate)


def _auc(totals: Totals) -> float:
    return totals.areas.auc


def _pr_auc(totals: Totals) -> float:
    return totals.areas.pr_auc


def _gauc(totals: Totals) -> float:
    return ratio(totals.sums.user_auc, totals.sums.user_weight)


def _logloss(totals: Totals) -> float:
    return totals.logloss


def _ne(totals: Totals) -> float:
    return ratio(totals.logloss, entropy(ratio(totals.sums.positives, totals.sums.weight)))


def _calibration(totals: Totals) -> float:
    predicted = totals.sums.predicted if totals.sums.not_finite == 0 else math.nan
    return ratio(predicted, totals.sums.positives)


def _influence_on_auc(terms: UserTerms) -> OfUsers | None:
    return terms.sums(_placements(terms.judged)).__getitem__ if 0.0 < terms.rate < 1.0 else None


def _influence_on_pr_auc(terms: UserTerms) -> OfUsers | None:
    return terms.sums(_effects_on_precision(terms.judged)).__getitem__ if terms.positive else None


def _influence_on_gauc(terms: UserTerms) -> OfUsers | None:
    own = terms.judged.by_user
    known = filled(own.auc.size, np.bool_, lambda some: ~np.isnan(own.auc[some]))
    if not known.any():
        return None
    users, auc, weight = (chosen(values, known) for values in (own.user, own.auc, own.weight))
    summed = weight.sum()
    share = filled(weight.size, np.float64, lambda some: weight[some] / summed)
    mean = float(filled(share.size, np.float64, lambda some: share[some] * auc[some]).sum())

    def influence(some: slice) -> np.ndarray:
        asked = terms.users[some]
        inside = slice(*np.searchsorted(users, asked[[0, -1]] + np.asarray([0, 1]))) if asked.size else slice(0, 0)
        of_users = np.zeros(asked.size)
        of_users[np.searchsorted(asked, users[inside])] = share[inside] * (auc[inside] - mean)
        return of_users

    return influence


def _influence_on_logloss(terms: UserTerms) -> OfUsers:
    logloss, weight = terms.logloss, terms.weight
    return lambda some: (terms.losses[some] - logloss * terms.weights[some]) / weight


def _influence_on_ne(terms: UserTerms) -> OfUsers | None:
    rate, weight = terms.rate, terms.weight
    if not 0.0 < rate < 1.0:
        return None
    spread = entropy(rate)
    on_logloss = _influence_on_logloss(terms)
    # The derivative of the entropy by the rate is log((1 - rate) / rate).
    slope = terms.logloss / spread**2 * math.log((1 - rate) / rate)

    def influence(some: slice) -> np.ndarray:
        on_rate = (terms.positives[some] - rate * terms.weights[some]) / weight
        of_users: np.ndarray = on_logloss(some) / spread - slope * on_rate
        return of_users

    return influence


def _influence_on_calibration(terms: UserTerms) -> OfUsers | None:
    positive = terms.positive
    if not positive:
        return None
    predicted = terms.sums(lambda some: probabilities(terms.judged.scores[some]))
    calibration = float(predicted.sum()) / positive
    return lambda some: (predicted[some] - calibration * terms.positives[some]) / positive


def _placements(judged: Judged) -> OfImpressions:
    """Return what each impression adds to the error of auc, before its weight.

    It is the share of the other class on the correct side of the impression, minus auc, over the weight of its own class.
    """
    counts = judged.counts
    auc, num_positive, num_negative = auc_of(counts), counts.positives.sum(), counts.negatives.sum()
    positives, negatives = cumulated(counts.positives), cumulated(counts.negatives)

    def placements(some: slice) -> np.ndarray:
        at = _groups_of(counts, judged.scores[some])
        below = negatives[at] - counts.negatives[at] / 2
        above = num_positive - positives[at] + counts.positives[at] / 2
        of_positive = (below / num_negative - auc) / num_positive
        of_negative = (above / num_positive - auc) / num_negative
        of_impressions: np.ndarray = np.where(judged.positive[some], of_positive, of_negative)
        return of_impressions

    return placements


def _effects_on_precision(judged: Judged) -> OfImpressions:
    """Return the derivative of the average precision by the weight of each impression.

    With T(s) and N(s) the weights of positives and of all impressions with scores of at least s, and P that of all positives,
    the average precision is A = sum over positives w T / N / P. An impression of score s changes the terms of all positives up
    to s: by 1 / N if it is positive, and by -T / N^2 in any case. As a positive it adds a term of its own, and to P.
    """
    counts, size = judged.counts, judged.counts.scores.size
    positives, negatives = cumulated_from_end(counts.positives), cumulated_from_end(counts.negatives)

    def over_groups(of_block: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Compute a function of each group's own positives, and T and N at its score."""
        return filled(
            size,
            np.float64,
            lambda some: of_block(counts.positives[some], positives[some], negatives[some] + positives[some]),
        )

    precision = over_groups(lambda own, hits, everything: hits / everything)
    of_hits = cumulated(over_groups(lambda own, hits, everything: own / everything))
    of_all = cumulated(over_groups(lambda own, hits, everything: own * (hits / everything) / everything))
    total = float(counts.positives.sum())
    average = float(over_groups(lambda own, hits, everything: own * (hits / everything)).sum()) / total

    def effects(some: slice) -> np.ndarray:
        at = _groups_of(counts, judged.scores[some])
        gains = np.where(judged.positive[some], precision[at] + of_hits[at] - average, 0.0)
        of_impressions: np.ndarray = (gains - of_all[at]) / total
        return of_impressions

    return effects


def _groups_of(counts: ScoreCounts, scores: np.ndarray) -> np.ndarray:
    """Return the place of each score among the groups. Sorted look-ups read a long array in order."""
    order = np.argsort(scores)
    places = np.empty(scores.size, np.int64)
    places[order] = np.searchsorted(counts.scores, numbers_of(scores)[order])
    return places


def _all_users(judged: Judged) -> int:
    return _num_users(judged, lambda positive, negative: positive | negative)


def _users_with_positives(judged: Judged) -> int:
    return _num_users(judged, lambda positive, negative: positive)


def _users_of_the_rarer_class(judged: Judged) -> int:
    return min(_users_with_positives(judged), _num_users(judged, lambda positive, negative: negative))


def _users_with_both_classes(judged: Judged) -> int:
    return _num_users(judged, lambda positive, negative: positive & negative)


def _num_users(judged: Judged, counted: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> int:
    """Count users by a function of two arrays: whether each user has positives, and negatives."""
    number = 0
    for some in whole_key_blocks(judged.user):
        users, place = np.unique(judged.user[some], return_inverse=True)
        positive = judged.positive[some]
        classes = (np.bincount(place, values, users.size) > 0 for values in (positive, ~positive))
        number += int(counted(*classes).sum())
    return number


METRICS: tuple[ImpressionMetric, ...] = (
    ImpressionMetric(
        name="auc",
        of_totals=_auc,
        influence=_influence_on_auc,
        independent_users=_users_of_the_rarer_class,
        explanation="Probability that a positive impression scores higher than a negative one; 0.5 is chance.",
        undefined_when="not both outcomes of the label are among the impressions of the split",
        larger_is_better=True,
        within=SHARE,
        headline=True,
    ),
    ImpressionMetric(
        name="pr_auc",
        of_totals=_pr_auc,
        influence=_influence_on_pr_auc,
        independent_users=_users_with_positives,
        explanation="Average precision, the area under the precision-recall curve; chance is the rate of positives.",
        undefined_when="no impression of the split is positive",
        larger_is_better=True,
        within=SHARE,
    ),
    ImpressionMetric(
        name="gauc",
        of_totals=_gauc,
        influence=_influence_on_gauc,
        independent_users=_users_with_both_classes,
        explanation="The auc within each user's own impressions, averaged over users with both classes.",
        undefined_when="no user has impressions of both outcomes of the label in the split",
        larger_is_better=True,
        within=SHARE,
        headline=True,
    ),
    ImpressionMetric(
        name="logloss",
        of_totals=_logloss,
        influence=_influence_on_logloss,
        independent_users=_all_users,
        explanation="Mean negative log likelihood of the labels, in nats; smaller is better.",
        undefined_when="a score is not finite, or the label is defined on no impression of the split",
        larger_is_better=False,
        within=NOT_NEGATIVE,
    ),
    ImpressionMetric(
        name="ne",
        of_totals=_ne,
        influence=_influence_on_ne,
        independent_users=_all_users,
        explanation="Normalised entropy: log loss relative to always predicting the mean rate; smaller is better, 1 is no gain.",
        undefined_when="a score is not finite, or not both outcomes of the label are among the impressions of the split",
        larger_is_better=False,
        within=NOT_NEGATIVE,
        headline=True,
    ),
    ImpressionMetric(
        name="calibration",
        of_totals=_calibration,
        influence=_influence_on_calibration,
        independent_users=_all_users,
        explanation="Predicted positives over observed positives: 1 is right, more predicts too many, less too few.",
        undefined_when="a score is not finite, or no impression of the split is positive",
        larger_is_better=None,
        within=NOT_NEGATIVE,
        selects=False,
    ),
)


def metrics_of(sums: Sums, areas: Areas) -> dict[str, float]:
    """Return all metrics of one label by name; NaN where one is not defined."""
    totals = Totals(sums, areas)
    return {metric.name: metric.of_totals(totals) for metric in METRICS}


def influences(judged: Judged, users: np.ndarray) -> dict[str, OfUsers]:
    """Return the influence of users on each metric that may have a value.

    users: (U,) ascending numbers, with all users of the impressions among them.
    """
    if judged.scores.size == 0:
        return {}
    terms = UserTerms(judged, users)
    by_metric = ((metric.name, metric.influence(terms)) for metric in METRICS)
    return {name: influence for name, influence in by_metric if influence is not None}
