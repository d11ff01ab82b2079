"""Means with intervals, paired differences, and the Pareto front. Pure functions on numbers.

Two intervals answer two questions. Over seeds (Student's t): how much another training run would differ. Over users (each
user's mean over the seeds): how much another sample of users would differ. Both are score intervals, which stay within the range
of the metric, or of its difference (trainer.evaluation.confidence).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.confidence import Range, mean_interval, score_interval, student_quantile


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % intervals."""

    mean: float  # NaN where a seed has no value
    over_seeds: tuple[float, float] | None  # None for a single seed
    over_users: tuple[float, float] | None  # None where users are not known

    @property
    def is_defined(self) -> bool:
        """True if there is a mean. One that is not defined is shown as missing, and is never the best."""
        return not math.isnan(self.mean)


def estimate(
    of_seeds: Sequence[float],
    of_users: np.ndarray | None,
    within: Range,
    interval: Callable[[np.ndarray, Range], tuple[float, float]] = mean_interval,
) -> Estimate:
    """Return the mean over seeds with its intervals.

    Args:
        of_seeds: a number per seed, or differences.
        of_users: (seeds, users) the same by user.
        within: the values that the mean can take.
        interval: of the mean of (users,) such numbers: independent values, or users' shares in a metric.
    """
    values = np.asarray(of_seeds, dtype=np.float64)
    mean = float(values.mean())
    if math.isnan(mean):
        return Estimate(mean, None, None)
    over_seeds = None
    if values.size > 1:
        error = float(values.std(ddof=1)) / math.sqrt(values.size)
        over_seeds = score_interval(mean, error, within, quantile=student_quantile(values.size - 1))
    over_users = None
    if of_users is not None and of_users.shape[1] > 1:
        over_users = interval(of_users.mean(axis=0), within)
    return Estimate(mean, over_seeds, over_users)


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Return the indices of the points that no other point dominates, cheapest first.

    A point dominates another if it costs no more, is no worse, and is better in one of the two.
    """
    front: list[int] = []
    best = -math.inf
    for place in sorted(range(len(costs)), key=lambda k: (costs[k], -qualities[k])):
        twin = bool(front) and costs[front[-1]] == costs[place] and qualities[front[-1]] == qualities[place]
        if qualities[place] > best or twin:
            front.append(place)
            best = qualities[place]
    return front
