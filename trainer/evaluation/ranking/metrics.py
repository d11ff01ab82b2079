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
Pure numpy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.confidence import NOT_NEGATIVE, SHARE
from trainer.evaluation.metric import Metric
from trainer.evaluation.ranking.judged import (
    Areas,
    Judged,
    Sums,
    UserAuc,
    auc_of,
    auc_of_users,
    count_scores,
    log_losses,
    probabilities,
    ratio,
)


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
    place: np.ndarray
    """(M,) the place of each impression's user in `users`."""
    weights: np.ndarray
    """(U,) summed weights of impressions."""
    positives: np.ndarray
    """(U,) summed weights of positives."""
    losses: np.ndarray
    """(U,) summed weighted log losses."""
    own_auc: UserAuc
    """The auc of each user with an impression."""

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

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the weighted sum of a value (M,) per impression over each user's impressions, (U,) float64."""
        return np.bincount(self.place, self.judged.weight * values, self.users.size)


@dataclass(frozen=True, kw_only=True)
class ImpressionMetric(Metric):
    """A metric of scored impressions."""

    of_totals: Callable[[Totals], float]
    """The value of the metric; NaN if it is not defined."""
    influence: Callable[[UserTerms], np.ndarray | None]
    """(U,) the term d_u of each user; None if the metric is not defined."""
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


def _influence_on_auc(terms: UserTerms) -> np.ndarray | None:
    return terms.sums(_placements(terms.judged)) if 0.0 < terms.rate < 1.0 else None


def _influence_on_pr_auc(terms: UserTerms) -> np.ndarray | None:
    return terms.sums(_effects_on_precision(terms.judged)) if terms.positive else None


def _influence_on_gauc(terms: UserTerms) -> np.ndarray | None:
    own = terms.own_auc
    known = ~np.isnan(own.auc)
    if not known.any():
        return None
    share = own.weight[known] / own.weight[known].sum()
    influence = np.zeros(terms.users.size)
    influence[np.searchsorted(terms.users, own.user[known])] = share * (
        own.auc[known] - float((share * own.auc[known]).sum())
    )
    return influence


def _influence_on_logloss(terms: UserTerms) -> np.ndarray:
    return (terms.losses - terms.logloss * terms.weights) / terms.weight


def _influence_on_ne(terms: UserTerms) -> np.ndarray | None:
    rate = terms.rate
    if not 0.0 < rate < 1.0:
        return None
    spread = entropy(rate)
    on_rate = (terms.positives - rate * terms.weights) / terms.weight
    # The derivative of the entropy by the rate is log((1 - rate) / rate).
    return _influence_on_logloss(terms) / spread - terms.logloss / spread**2 * math.log((1 - rate) / rate) * on_rate


def _influence_on_calibration(terms: UserTerms) -> np.ndarray | None:
    if not terms.positive:
        return None
    predicted = terms.sums(probabilities(terms.judged.scores))
    calibration = float(predicted.sum()) / terms.positive
    return (predicted - calibration * terms.positives) / terms.positive


def _placements(judged: Judged) -> np.ndarray:
    """Return what each impression adds to the error of auc, before its weight, (M,).

    It is the share of the other class on the correct side of the impression, minus auc, over the weight of its own class.
    """
    counts = count_scores(judged)
    auc, num_positive, num_negative = auc_of(counts), counts.positives.sum(), counts.negatives.sum()
    below = np.cumsum(counts.negatives) - counts.negatives / 2
    above = num_positive - np.cumsum(counts.positives) + counts.positives / 2
    at = np.searchsorted(counts.scores, np.where(np.isnan(judged.scores), -np.inf, judged.scores))
    of_positive = (below[at] / num_negative - auc) / num_positive
    of_negative = (above[at] / num_positive - auc) / num_negative
    placements: np.ndarray = np.where(judged.positive, of_positive, of_negative)
    return placements


def _effects_on_precision(judged: Judged) -> np.ndarray:
    """Return the derivative of the average precision by the weight of each impression, (M,).

    With T(s) and N(s) the weights of positives and of all impressions with scores of at least s, and P that of all positives,
    the average precision is A = sum over positives w T / N / P. An impression of score s changes the terms of all positives up
    to s: by 1 / N if it is positive, and by -T / N^2 in any case. As a positive it adds a term of its own, and to P.
    """
    counts = count_scores(judged)
    positives = np.cumsum(counts.positives[::-1])[::-1]
    everything = np.cumsum(counts.negatives[::-1])[::-1] + positives
    precision = positives / everything
    of_hits = np.cumsum(counts.positives / everything)
    of_all = np.cumsum(counts.positives * precision / everything)
    total = float(counts.positives.sum())
    average = float((counts.positives * precision).sum()) / total
    at = np.searchsorted(counts.scores, np.where(np.isnan(judged.scores), -np.inf, judged.scores))
    gains = np.where(judged.positive, precision[at] + of_hits[at] - average, 0.0)
    effects: np.ndarray = (gains - of_all[at]) / total
    return effects


def _all_users(judged: Judged) -> int:
    return int(np.unique(judged.user).size)


def _users_with_positives(judged: Judged) -> int:
    return int(np.unique(judged.user[judged.positive]).size)


def _users_of_the_rarer_class(judged: Judged) -> int:
    return min(np.unique(judged.user[judged.positive]).size, np.unique(judged.user[~judged.positive]).size)


def _users_with_both_classes(judged: Judged) -> int:
    positive, negative = np.unique(judged.user[judged.positive]), np.unique(judged.user[~judged.positive])
    return int(np.intersect1d(positive, negative, assume_unique=True).size)


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


def influences(judged: Judged, users: np.ndarray) -> dict[str, np.ndarray]:
    """Return the influence of each user on each metric that may have a value, (U,) each.

    users: (U,) ascending numbers, with all users of the impressions among them.
    """
    if judged.scores.size == 0:
        return {}
    place = np.searchsorted(users, judged.user)

    def by_user(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, judged.weight * values, users.size)

    terms = UserTerms(
        judged,
        users,
        place,
        weights=by_user(np.ones(judged.scores.size)),
        positives=by_user(judged.positive.astype(np.float64)),
        losses=by_user(log_losses(judged.scores, judged.positive)),
        own_auc=auc_of_users(judged),
    )
    by_metric = ((metric.name, metric.influence(terms)) for metric in METRICS)
    return {name: influence for name, influence in by_metric if influence is not None}
