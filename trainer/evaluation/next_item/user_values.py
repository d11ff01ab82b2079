"""The values of one metric of all users, their weighted mean, and its confidence interval. Pure numpy.

Most metrics are plain means over users. In a weighted mean, sum w_u v_u / sum w_u, the weights are part of the sample, too: another
sample of users has other weights. So the mean is a ratio of two means, and its standard error follows from the linear terms
w_u (v_u - mean) / sum w (Taylor linearisation of a ratio: Cochran 1977, Sampling Techniques, chapter 6).

Values may be in temporary files (trainer.evaluation.spooled). So all sums go over blocks of users, and nothing here needs memory
for all users except `shares`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.confidence import Range, score_interval
from trainer.evaluation.spooled import blocks, kept


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
        weights = None if self.weights is None else kept(self.weights[users])
        return UserValues(kept(self.values[users]), self.within, weights)

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
            return self._total(lambda values, _: values.sum()), float(self.values.size)
        return (
            self._total(lambda values, weights: (weights * values).sum()),
            self._total(lambda _, weights: weights.sum()),
        )

    @property
    def mean(self) -> float:
        """The metric: the weighted mean; 0 if no user has a value."""
        above, below = self.sums
        if not below:
            return 0.0
        if self.weights is None:
            return above / below
        known = [values[weights > 0.0] for values, weights in self._blocks()]
        least = min(float(values.min()) for values in known if values.size)
        most = max(float(values.max()) for values in known if values.size)
        return min(max(above / below, least), most)  # rounding may leave the range

    @property
    def shares(self) -> np.ndarray:
        """(U,) numbers with the metric as their plain mean, and its standard error as theirs; the values if all count equally.

        Two models are compared user by user by the differences of these numbers. Some may be outside the range of the metric.
        """
        return self.shares_of()(slice(None))

    def shares_of(self) -> Callable[[slice], np.ndarray]:
        """Return the function that computes the `shares` of some users."""
        if self.weights is None:
            return lambda users: self.values[users]
        size, weights, mean = self.size, self.weights, self.mean
        total = self.sums[1]
        if not total:
            return lambda users: np.zeros(self.values[users].size)

        def shares(users: slice) -> np.ndarray:
            of_users: np.ndarray = mean + size * weights[users] * (self.values[users] - mean) / total
            return of_users

        return shares

    def interval(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of the mean over users; (0, 0) if no user has a value, as the mean is 0."""
        mean = self.mean
        if self.weights is None:
            if not self.size:
                return 0.0, 0.0
            variance = self._total(lambda values, _: np.square(values - mean).sum()) / self.size
            return score_interval(mean, math.sqrt(variance) / math.sqrt(self.size), self.within, self.size)
        counted = self[self.weights > 0.0]
        if not counted.size:
            return 0.0, 0.0
        summed = counted.sums[1]
        error = math.sqrt(counted._total(lambda values, weights: np.square(weights / summed * (values - mean)).sum()))
        # The number of equally weighted users with the same error of a mean (Kish 1965).
        effective = 1.0 / counted._total(lambda _, weights: np.square(weights / summed).sum())
        factor = counted.size / (counted.size - 1) if counted.size > 1 else 0.0
        return score_interval(mean, math.sqrt(factor) * error, self.within, effective)

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the values and weights of blocks of users."""
        for users in blocks(self.size):
            values = self.values[users]
            yield values, np.ones(values.size) if self.weights is None else self.weights[users]

    def _total(self, of_block: Callable[[np.ndarray, np.ndarray], float]) -> float:
        """Return the sum over blocks of a function of their values and weights."""
        return sum(float(of_block(values, weights)) for values, weights in self._blocks())


def means(columns: dict[str, UserValues]) -> dict[str, float]:
    """Return the mean of each metric over users; 0 without users."""
    return {name: values.mean for name, values in columns.items()}


def intervals(columns: dict[str, UserValues]) -> dict[str, list[float]]:
    """Return 95 % confidence intervals of the means over users; [0, 0] without users, as the mean is 0."""
    return {name: list(values.interval()) for name, values in columns.items()}
