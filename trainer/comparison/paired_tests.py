"""Tests of paired differences: sign test, randomisation test, and Holm's correction for several comparisons. Pure numpy.

Two models are measured on the same users. Under the null hypothesis a user's difference is as likely to have the other sign.
The sign test counts users that are better and worse; for hits it is McNemar's test in its exact form (McNemar 1947). The
randomisation test (Fisher 1935; for retrieval metrics Smucker, Allan & Carterette 2007) compares the mean difference with the means
under all choices of signs. For values of one size, such as hits, both are the same test.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()
MAX_EXACT_SIGNS = 200_000  # users of the exact sign test; with more, the normal distribution is as good
MAX_ENUMERATED = 20  # users for which the randomisation test tries all choices of signs
_SAME = 1e-9  # relative: sums and sizes this near are equal, up to rounding


def sign_test(num_positive: int, num_negative: int) -> float:
    """Return the two-sided p-value that positive and negative differences are equally likely: the exact binomial test."""
    number, fewer = num_positive + num_negative, min(num_positive, num_negative)
    if 2 * fewer >= number - 1:  # the smallest imbalance that there is
        return 1.0
    if number > MAX_EXACT_SIGNS:
        return 2.0 * _NORMAL.cdf((2.0 * fewer + 1.0 - number) / math.sqrt(number))
    # Logs of P(X = k) for k = 0 ... fewer, by P(X = k + 1) / P(X = k) = (number - k) / (k + 1).
    k = np.arange(fewer)
    logs = np.concatenate(([0.0], np.cumsum(np.log(number - k) - np.log(k + 1.0)))) - number * math.log(2.0)
    return min(1.0, 2.0 * float(np.exp(logs).sum()))


def randomisation_test(differences: np.ndarray) -> float:
    """Return the two-sided p-value of the mean of paired differences (n,) under random signs.

    With values of one size it is the sign test. All choices of signs are tried for at most MAX_ENUMERATED values other than 0.
    For more, the tail is a saddlepoint approximation (Robinson 1982, Lugannani & Rice 1980), which stays accurate for very small
    p-values; where many choices have the same sum, it counts about half of those that are equal to the observed one.
    """
    sizes = np.abs(differences[differences != 0.0])
    if sizes.size == 0:
        return 1.0
    if sizes.max() - sizes.min() <= _SAME * sizes.max():
        positive = int((differences > 0.0).sum())
        return sign_test(positive, sizes.size - positive)
    sizes = sizes / sizes.max()
    observed = abs(float((sizes * np.sign(differences[differences != 0.0])).sum()))
    if sizes.size <= MAX_ENUMERATED:
        return _share_of_all_signs(sizes, observed)
    return min(1.0, 2.0 * _tail(sizes, observed))


def _share_of_all_signs(sizes: np.ndarray, observed: float) -> float:
    """Return the share of all choices of signs with a sum at least as far from 0."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate((sums + size, sums - size))
    return float((np.abs(sums) >= observed - _SAME * sizes.sum()).mean())


def _tail(sizes: np.ndarray, observed: float) -> float:
    """Return the approximate probability that a sum of sizes (n,) in (0, 1] with random signs is at least `observed` >= 0."""
    total, variance = float(sizes.sum()), float((sizes**2).sum())
    if observed >= total * (1.0 - _SAME):  # only one choice of signs has this sum
        return 2.0**-sizes.size
    if observed**2 < 1e-6 * variance:  # the formula divides by 0 at the middle
        return 0.5
    # K(t) = sum of log cosh(t size) is the cumulant generating function; the saddlepoint solves K'(t) = observed.
    t, step = observed / variance, 1.0
    # K' is concave, so Newton's method climbs to the saddlepoint from below and never passes it.
    while step > 1e-12 * t:
        slopes = np.tanh(t * sizes)
        step = (observed - float((sizes * slopes).sum())) / float((sizes**2 * (1.0 - slopes**2)).sum())
        t += step
    scaled = t * sizes
    log_cosh = scaled + np.log1p(np.exp(-2.0 * scaled)) - math.log(2.0)
    w = math.sqrt(max(0.0, 2.0 * (t * observed - float(log_cosh.sum()))))
    curvature = float((sizes**2 * (1.0 - np.tanh(scaled) ** 2)).sum())
    v = t * math.sqrt(curvature)
    if min(w, v) < 1e-4:
        return 0.5
    return max(0.0, _NORMAL.cdf(-w) + _NORMAL.pdf(w) * (1.0 / v - 1.0 / w))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of tests (Holm 1979): the chance of any false positive stays at the level."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for number, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - number) * p_values[place]))
        corrected[place] = largest
    return corrected


def normal_quantile(probability: float) -> float:
    """Return z with P(Z <= z) = probability for the standard normal distribution."""
    return _NORMAL.inv_cdf(probability)
