"""The values of one metric of all users, their weighted mean, and its confidence interval. Pure numpy.

Most metrics are plain means over users. In a weighted mean, sum w_u v_u / sum w_u, the weights are part of the sample, too: another
sample of users has other weights. So the mean is a ratio of two means, and its standard error follows from the linear terms
w_u (v_u - mean) / sum w (Taylor linearisation of a ratio: Cochran 1977, Sampling Techniques, chapter 6).
"""

import math
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.confidence import Range, mean_interval, score_interval


@dataclass(frozen=True)
class UserValues:
    """The values of one metric of U users."""

    values: np.ndarray
    """(U,) float64, each within the range of the metric. A user of weight 0 may have any number."""
    within: Range
    """The range of the metric."""
    weights: np.ndarray | None = None
    """(U,) float64, not negative; None if all users count equally. A user without a value has the weight 0."""

    def __getitem__(self, users: np.ndarray) -> "UserValues":
        """Return the values of some users: their places, or a mask."""
        return UserValues(self.values[users], self.within, None if self.weights is None else self.weights[users])

    def reweighted(self, weights: np.ndarray) -> "UserValues":
        """Return the values with their weights multiplied by others, (U,)."""
        return UserValues(self.values, self.within, weights if self.weights is None else self.weights * weights)

    @property
    def size(self) -> int:
        """The number of users."""
        return self.values.size

    @property
    def sums(self) -> tuple[float, float]:
        """The sum of weights times values, and the sum of weights; both add up over parts of the users."""
        if self.weights is None:
            return float(self.values.sum()), float(self.values.size)
        return float((self.weights * self.values).sum()), float(self.weights.sum())

    @property
    def mean(self) -> float:
        """The metric: the weighted mean; 0 if no user has a value."""
        if self.weights is None:
            return float(self.values.mean()) if self.values.size else 0.0
        above, below = self.sums
        if not below:
            return 0.0
        known = self.values[self.weights > 0.0]
        return min(max(above / below, float(known.min())), float(known.max()))  # rounding may leave the range

    @property
    def shares(self) -> np.ndarray:
        """(U,) numbers with the metric as their plain mean, and its standard error as theirs; the values if all count equally.

        Two models are compared user by user by the differences of these numbers. Some may be outside the range of the metric.
        """
        if self.weights is None:
            return self.values
        total, mean = self.sums[1], self.mean
        if not total:
            return np.zeros(self.size)
        shares: np.ndarray = mean + self.size * self.weights * (self.values - mean) / total
        return shares

    def interval(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of the mean over users; (0, 0) if no user has a value, as the mean is 0."""
        if self.weights is None:
            return mean_interval(self.values, self.within) if self.size else (0.0, 0.0)
        counted = self[self.weights > 0.0]
        if not counted.size:
            return 0.0, 0.0
        assert counted.weights is not None
        weights = counted.weights / counted.weights.sum()
        error = math.sqrt(float(np.square(weights * (counted.values - self.mean)).sum()))
        # The number of equally weighted users with the same error of a mean (Kish 1965).
        effective = 1.0 / float(np.square(weights).sum())
        factor = counted.size / (counted.size - 1) if counted.size > 1 else 0.0
        return score_interval(self.mean, math.sqrt(factor) * error, self.within, effective)


def means(columns: dict[str, UserValues]) -> dict[str, float]:
    """Return the mean of each metric over users; 0 without users."""
    return {name: values.mean for name, values in columns.items()}


def intervals(columns: dict[str, UserValues]) -> dict[str, list[float]]:
    """Return 95 % confidence intervals of the means over users; [0, 0] without users, as the mean is 0."""
    return {name: list(values.interval()) for name, values in columns.items()}
