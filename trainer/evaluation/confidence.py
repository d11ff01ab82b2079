"""95 % confidence intervals of means of values in a range: score intervals. Pure numpy.

A score interval contains every mean m that the estimate does not contradict: |estimate - m| <= z error(m). The error depends on m,
as it must near an end of the range (Wilson 1927). So the interval never leaves the range, contains the estimate, and is asymmetric
near an end. The error at the estimate is the measured one. The method also suits values other than 0 and 1, and estimates that are
not plain means: the number of values that would have this error replaces their count (effective sample size: Korn & Graubard 1998).

Range        error(m)^2 is proportional to
[0, 1]       m (1 - m), Wilson's interval
[-1, 1]      (1 + m) (1 - m), the same, shifted and scaled; from values themselves see `difference_interval`
[0, inf)     m, its limit for a range that grows
(-inf, inf)  1, so that the interval is estimate -+ z error
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Range:
    """The values that a metric can take."""

    low: float
    """The smallest value, minus infinity if there is none."""
    high: float
    """The largest value, infinity if there is none."""

    @property
    def of_differences(self) -> "Range":
        """The values that a difference of two such metrics can take."""
        return Range(self.low - self.high, self.high - self.low)


SHARE = Range(0.0, 1.0)
NOT_NEGATIVE = Range(0.0, math.inf)


def score_interval(
    estimate: float, error: float, within: Range, count: float | None = None, quantile: float = Z95
) -> tuple[float, float]:
    """Return the interval of an estimate with a standard error.

    Args:
        estimate: a value within the range.
        error: the standard error of the estimate, 0 where no spread was observed.
        within: the range.
        count: the number of independent values behind the estimate. It decides at an end of a finite range where the error is 0:
            values that are all 0 do not show that the mean is exactly 0. None accepts an error of 0 as it is.
        quantile: the two-sided quantile of the distribution of estimates.
    """
    low, high = within.low, within.high
    if math.isinf(high):
        if math.isinf(low) or estimate <= low or error == 0.0:
            return max(low, estimate - quantile * error), estimate + quantile * error
        # error(m)^2 = error^2 (m - low) / (estimate - low) has two solutions. The product of their distances to `low` is the
        # square of the estimate's distance.
        above, shift = estimate - low, quantile**2 * error**2 / (estimate - low) / 2
        upper = above + shift + math.hypot(quantile * error, shift)
        return low + min(above, above * (above / upper)), low + max(above, upper)
    share = (estimate - low) / (high - low)
    effective = _effective_count(share, error / (high - low), count)
    if math.isinf(effective):
        return estimate, estimate
    bounds = wilson(np.asarray(share), np.asarray(effective), quantile)
    lower, upper = (low + (high - low) * float(bound) for bound in bounds)
    return max(low, min(lower, estimate)), min(high, max(upper, estimate))


def _effective_count(share: float, error: float, count: float | None) -> float:
    """Return how many values of 0 and 1 with this mean have this standard error; infinity for an accepted error of 0."""
    if error > 0.0 and 0.0 < share < 1.0:
        return max(1.0, share * (1.0 - share) / error**2)  # the error of a single value is the largest that there is
    at_an_end = share <= 0.0 or share >= 1.0
    return count if count is not None and (at_an_end or count <= 1) else math.inf


def mean_interval(values: np.ndarray, within: Range) -> tuple[float, float]:
    """Return the interval of the mean of independent values (n,), at least one.

    With values of 0 and 1 it is Wilson's. The interval of a single value is as wide as that of one value of 0 or 1.
    In a range around 0 the values are paired differences.
    """
    if within.low == -within.high and math.isfinite(within.high):
        return difference_interval(values, within.high)
    error = float(values.std()) / math.sqrt(values.size)
    return score_interval(float(values.mean()), error, within, values.size)


def difference_interval(values: np.ndarray, largest: float = 1.0) -> tuple[float, float]:
    """Return the interval of the mean of paired differences (n,) in [-largest, largest]: a score interval (Tango 1998).

    The error at a mean m is that of the most likely shares of values above and below 0 with difference m. So a few values other
    than 0 are not taken for all possible ones. Tango's values are -1, 0 and 1. Others are divided by the size for which
    their mean absolute value equals their mean square, as it does for his.
    """
    count, absolute = values.size, np.abs(values).mean()
    # A single value does not tell how large others are.
    size = float(np.square(values).mean() / absolute) if absolute > 0.0 and count > 1 else largest
    mean = float(values.mean()) / size
    below = float((absolute / size - mean) / 2)  # share of values of -1
    above = below + mean
    limit = largest / size

    def fits(candidate: float) -> bool:
        error = _error_of_difference(candidate, above, below, count)
        return abs(mean - candidate) <= Z95 * error

    low, high = (size * _last_that_fits(fits, mean, end) for end in (-min(limit, 1.0), min(limit, 1.0)))
    return max(-largest, low), min(largest, high)


def _error_of_difference(mean: float, above: float, below: float, count: int) -> float:
    """Return the standard error of a mean difference where the mean is `mean`, from the observed shares (Tango 1998, section 2)."""
    b = (2.0 - above + below) * mean - above - below
    c = -below * mean * (1.0 - mean)
    share = (math.sqrt(max(0.0, b * b - 8.0 * c)) - b) / 4.0  # the most likely share of values below 0
    return math.sqrt(max(0.0, 2.0 * share + mean - mean * mean) / count)


def _last_that_fits(fits: Callable[[float], bool], inside: float, end: float) -> float:
    """Return the number between `inside`, which fits, and `end` up to which all fit, by bisection."""
    if fits(end):
        return end
    for _ in range(60):
        middle = (inside + end) / 2.0
        inside, end = (middle, end) if fits(middle) else (inside, middle)
    return inside


def wilson(rate: np.ndarray, count: np.ndarray, quantile: float = Z95) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of rates of `count` independent values of 0 and 1 (Wilson 1927)."""
    spread = quantile**2 / count
    middle = (rate + spread / 2) / (1 + spread)
    half = quantile / (1 + spread) * np.sqrt(rate * (1 - rate) / count + spread / (4 * count))
    return middle - half, middle + half


def student_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return t with P(-t <= T <= t) = confidence for Student's T with a whole number of degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Return P(-t <= T <= t), a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    if degrees % 2 == 0:
        term, total = 1.0, 1.0
        for k in range(1, degrees // 2):
            term *= cosine**2 * (2 * k - 1) / (2 * k)
            total += term
        return sine * total
    total, term = 0.0, cosine
    for k in range(1, (degrees - 1) // 2 + 1):
        total += term
        term *= cosine**2 * (2 * k) / (2 * k + 1)
    return 2.0 / math.pi * (angle + sine * total)
