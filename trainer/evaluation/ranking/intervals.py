"""95 % confidence intervals of metrics of impressions. Users are the sampling unit: impressions of one user are not independent.

The standard error of a metric is sqrt(U / (U - 1) sum d_u^2), with d_u the influence of user u (see metrics.py).
Estimate and error make a score interval, which stays within the metric's range (trainer.evaluation.confidence).
"""

import math

import numpy as np

from trainer.evaluation.confidence import Range, score_interval
from trainer.evaluation.ranking.judged import Judged
from trainer.evaluation.ranking.metrics import METRICS, OfUsers, influences
from trainer.evaluation.spooled import filled, unique_keys


def intervals_of(judged: Judged, metrics: dict[str, float]) -> dict[str, list[float]]:
    """Return [low, high] of every metric that has a value; metrics: those of the same impressions.

    A single user does not show how users differ: then only metrics with a bounded range have an interval, a wide one.
    """
    errors = standard_errors(judged, metrics)
    bounds = {}
    for metric in METRICS:
        if metric.name in errors:
            count = metric.independent_users(judged)
            if count > 1 or math.isfinite(metric.within.high):
                interval = score_interval(metrics[metric.name], errors[metric.name], metric.within, count)
                bounds[metric.name] = list(interval)
    return bounds


def standard_errors(judged: Judged, metrics: dict[str, float]) -> dict[str, float]:
    """Return the standard error of every metric that has a value, 0 for a single user; metrics: those of the same impressions."""
    users = unique_keys(judged.user)
    factor = users.size / (users.size - 1) if users.size > 1 else 0.0
    return {
        name: math.sqrt(factor * sum_of_squares(users.size, influence))
        for name, influence in influences(judged, users).items()
        if math.isfinite(metrics[name])
    }


def sum_of_squares(num_users: int, values: OfUsers) -> float:
    """Return the sum over all users of the square of a value."""
    return float(filled(num_users, np.float64, lambda some: values(some) ** 2).sum())


def shares_of_users(judged: Judged, metrics: dict[str, float], users: np.ndarray) -> dict[str, np.ndarray]:
    """Return for every metric (U,) numbers, one per user, with the metric as their mean and its standard error as theirs.

    Two models are compared user by user on any metric by the differences of these numbers.

    Args:
        judged: the impressions.
        metrics: the metrics of the same impressions.
        users: (U,) all users, ascending. A user without impressions here adds nothing.

    Returns:
        By metric; NaN where the metric has no value.
    """
    return {name: share(slice(None)) for name, share in shares_by_users(judged, metrics, users).items()}


def shares_by_users(judged: Judged, metrics: dict[str, float], users: np.ndarray) -> dict[str, OfUsers]:
    """Return the functions that compute the numbers of shares_of_users for some users."""
    by_metric = influences(judged, users)

    def shares(name: str, value: float) -> OfUsers:
        if not math.isfinite(value):
            return lambda some: np.full(users[some].size, np.nan)
        return lambda some: value + users.size * by_metric[name](some)

    return {name: shares(name, value) for name, value in metrics.items()}


def share_interval(shares: np.ndarray, within: Range) -> tuple[float, float]:
    """Return the interval of a metric, or of a difference of two, from its users' shares (shares_of_users), (U,) of at least 2.

    It equals the interval of intervals_of, except where all users have the same share at an end of the range.
    """
    error = float(shares.std(ddof=1)) / math.sqrt(shares.size)
    return score_interval(float(shares.mean()), error, within, shares.size)
