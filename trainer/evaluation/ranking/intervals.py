"""95 % intervals of metrics of impressions, with users as what is drawn: impressions of one user are not independent.

Every metric is written as a mean over users, up to terms that vanish (its influence function): estimate + sum over u of d_u. Its
standard error is then sqrt(U / (U - 1) sum d_u^2). For auc the d_u are sums of DeLong's placements (DeLong et al. 1988) over the
user's impressions, as in Obuchowski 1997; with one impression per user that is DeLong's error, but for factors like U / (U - 1).
Estimate and error make a score interval, which lies within the metric's range (trainer.evaluation.confidence).
"""

import math

import numpy as np

from trainer.evaluation.confidence import Range, range_of, score_interval
from trainer.evaluation.ranking.metrics import (
    Judged,
    ScoreCounts,
    auc_of,
    auc_of_users,
    count_scores,
    entropy,
    log_losses,
    probabilities,
)


def intervals_of(judged: Judged, metrics: dict[str, float]) -> dict[str, list[float]]:
    """Return [low, high] of every metric that has a value; metrics: those of the same impressions.

    A single user tells nothing of how users differ: then only metrics with two ends have an interval, a wide one.
    """
    bounds = {}
    for name, error in standard_errors(judged, metrics).items():
        within, count = range_of(name), _independent_users(judged, name)
        if count > 1 or math.isfinite(within.high):
            bounds[name] = list(score_interval(metrics[name], error, within, count))
    return bounds


def standard_errors(judged: Judged, metrics: dict[str, float]) -> dict[str, float]:
    """Return the standard error of every metric that has a value, 0 for a single user; metrics: those of the same impressions."""
    users = np.unique(judged.user)
    factor = users.size / (users.size - 1) if users.size > 1 else 0.0
    return {
        name: math.sqrt(factor * float((influence**2).sum()))
        for name, influence in _influences(judged, users).items()
        if math.isfinite(metrics[name])
    }


def _independent_users(judged: Judged, metric: str) -> int:
    """Return how many users a metric is estimated from: for auc the fewer of those with positives and those with negatives."""
    positive, negative = np.unique(judged.user[judged.positive]), np.unique(judged.user[~judged.positive])
    match metric:
        case "auc":
            return min(positive.size, negative.size)
        case "gauc":
            return int(np.intersect1d(positive, negative, assume_unique=True).size)
        case _:
            return int(np.unique(judged.user).size)


def shares_of_users(judged: Judged, metrics: dict[str, float], users: np.ndarray) -> dict[str, np.ndarray]:
    """Of every metric (U,) numbers, one per user, whose mean is the metric and whose standard error is that of its interval.

    users: (U,) ascending, all of them; who has no impression here adds nothing. NaN where the metric has no value. Two models are
    compared user by user on any metric, by the differences of these.
    """
    found = _influences(judged, users)
    nothing = np.full(users.size, np.nan)
    return {
        name: value + users.size * found[name] if math.isfinite(value) else nothing for name, value in metrics.items()
    }


def share_interval(shares: np.ndarray, within: Range) -> tuple[float, float]:
    """Return the interval of a metric, or of a difference of two, from its users' shares (shares_of_users), (U,) of at least 2.

    It is that of intervals_of, but where all users have the same share at an end of the range.
    """
    error = float(shares.std(ddof=1)) / math.sqrt(shares.size)
    return score_interval(float(shares.mean()), error, within, shares.size)


def _influences(judged: Judged, users: np.ndarray) -> dict[str, np.ndarray]:
    """What each of the users adds to the error of each metric that may have a value, (U,) each."""
    if judged.scores.size == 0:
        return {}
    place = np.searchsorted(users, judged.user)

    def by_user(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, judged.weight * values, users.size)

    clicks, losses = judged.positive.astype(np.float64), log_losses(judged.scores, judged.positive)
    weights, positives = by_user(np.ones_like(clicks)), by_user(clicks)
    weight, positive = float(weights.sum()), float(positives.sum())
    rate, logloss = positive / weight, float(by_user(losses).sum()) / weight
    of_loss = (by_user(losses) - logloss * weights) / weight
    of_rate = (positives - rate * weights) / weight
    calibration = float(by_user(probabilities(judged.scores)).sum()) / positive if positive else math.nan
    influences = {"logloss": of_loss}
    if 0.0 < rate < 1.0:
        spread = entropy(rate)
        # The derivative of the entropy by the rate is log((1 - rate) / rate).
        influences["ne"] = of_loss / spread - logloss / spread**2 * math.log((1 - rate) / rate) * of_rate
        influences["auc"] = by_user(_placements(judged))
    if positive:
        influences["calibration"] = (by_user(probabilities(judged.scores)) - calibration * positives) / positive
    own = auc_of_users(judged)
    known = ~np.isnan(own.auc)
    if known.any():
        share = own.weight[known] / own.weight[known].sum()
        influences["gauc"] = np.zeros(users.size)
        at = np.searchsorted(users, own.user[known])
        influences["gauc"][at] = share * (own.auc[known] - float((share * own.auc[known]).sum()))
    return influences


def _placements(judged: Judged) -> np.ndarray:
    """What each impression adds to the error of auc, its weight aside: how far the share of the other class that it stands right
    to is from auc, over the weight of its own class. (M,)"""
    counts: ScoreCounts = count_scores(judged)
    auc, num_positive, num_negative = auc_of(counts), counts.positives.sum(), counts.negatives.sum()
    below = np.cumsum(counts.negatives) - counts.negatives / 2
    above = num_positive - np.cumsum(counts.positives) + counts.positives / 2
    at = np.searchsorted(counts.scores, np.where(np.isnan(judged.scores), -np.inf, judged.scores))
    of_positive = (below[at] / num_negative - auc) / num_positive
    of_negative = (above[at] / num_positive - auc) / num_negative
    placements: np.ndarray = np.where(judged.positive, of_positive, of_negative)
    return placements
