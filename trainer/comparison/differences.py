"""Differences of two models in one metric: mean, interval, test and effect sizes. Pure numpy.

The numbers of a user are the user's own values, or for metrics of a ranking model the user's shares, of which the metric is the
mean (trainer.evaluation.ranking.intervals.shares_of_users).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from trainer.comparison.bootstrap import FEW_USERS, bootstrap_means, percentile_intervals, standard_error
from trainer.comparison.paired_tests import holm, normal_quantile, randomisation_test, sign_test
from trainer.evaluation.confidence import CONFIDENCE, student_quantile
from trainer.tasks.metrics import interval_of, metric_of

LEVEL = 1.0 - CONFIDENCE
POWER = 0.8  # of the smallest difference that a comparison would detect

_ROUNDING = 1e-12  # means of the same values over seeds, summed in another order, may differ by less

Outcome = Literal["better", "worse", "differs", "unclear", "none"]


@dataclass(frozen=True)
class UserCounts:
    """Numbers of users for whom the other model is better, worse and equal, with the sign test."""

    better: int
    """Users with a better value."""
    worse: int
    """Users with a worse value."""
    equal: int
    """Users with the same value."""
    p: float
    """The p-value of the sign test: better and worse are equally likely."""
    p_corrected: float
    """The same after Holm's correction."""


@dataclass(frozen=True)
class Difference:
    """The difference of a model to its reference in one metric."""

    metric: str
    """The name of the metric's value."""
    reference: float
    """The metric of the reference, a mean over its seeds."""
    value: float
    """The metric of the other model, a mean over its seeds."""
    difference: float
    """Value minus reference, over the same users."""
    interval: tuple[float, float] | None
    """95 % interval of the difference over users; None with a single user."""
    interval_by: Literal["bootstrap", "score"]
    """How the interval was computed."""
    p: float
    """The p-value of the randomisation test."""
    p_corrected: float
    """The same after Holm's correction."""
    effect_size: float | None
    """Cohen's d_z: the mean of the users' differences over their standard deviation; None where they do not vary."""
    detectable: float | None
    """The smallest difference that would be detected with probability POWER at these variances, after the correction."""
    over_seeds: tuple[float, float] | None
    """95 % interval of the difference over training seeds; None unless both sides have several."""
    users: UserCounts | None
    """Counts of users; None where the metric is not defined for a user alone."""
    outcome: Outcome
    """The verdict about the other model: "better", "worse"; "differs" where neither direction is better; "unclear" where the users'
    differences are clear, but their mean is not over training seeds; "none" where no difference was found."""

    @property
    def relative(self) -> float | None:
        """The difference relative to the reference; None where that is 0."""
        return self.difference / self.reference if self.reference else None


@dataclass(frozen=True)
class Measured:
    """The numbers of two sides for one metric on the same users."""

    metric: str
    """The name of the metric's value."""
    reference: np.ndarray
    """(seeds, users) the numbers of the reference."""
    other: np.ndarray
    """(seeds, users) those of the other side."""
    own: tuple[np.ndarray, np.ndarray] | None
    """(users,) each, the users' own values of both sides, for counts; None where the metric has none. NaN: not defined."""

    @property
    def differences(self) -> np.ndarray:
        """(users,) the differences of the means over seeds; exactly 0 where only rounding differs."""
        return _without_rounding(self.other.mean(axis=0) - self.reference.mean(axis=0))


def differences_of(measured: Sequence[Measured], num_resamples: int, seed: int) -> list[Difference]:
    """Return the differences with bootstrapped intervals, corrected together for their number.

    All must have the same users; measured: of each pair of sides and each metric.
    """
    columns = (one.differences for one in measured)
    means = bootstrap_means(columns, measured[0].other.shape[1], num_resamples, seed)
    bounds = percentile_intervals(means)
    return corrected(
        [
            untested_difference(one, (float(low), float(high)))(len(measured))
            for one, (low, high) in zip(measured, bounds, strict=True)
        ]
    )


def untested_difference(
    measured: Measured, bootstrapped: tuple[float, float] | None = None
) -> Callable[[int], Difference]:
    """Return the function from the number of tests that are corrected together to a difference, not yet corrected (corrected).

    The function does not hold the numbers of users.

    Args:
        measured: the numbers of both sides.
        bootstrapped: the interval by the bootstrap; used unless fewer than FEW_USERS users differ.
    """
    differences, metric = measured.differences, metric_of(measured.metric)
    few = int((differences != 0.0).sum()) < FEW_USERS
    interval = bootstrapped
    if few or bootstrapped is None:
        of_metric = interval_of(measured.metric)
        interval = of_metric(differences, metric.within.of_differences) if differences.size > 1 else None
    spread = float(differences.std(ddof=1)) if differences.size > 1 else 0.0
    mean, error = float(differences.mean()), standard_error(differences)
    difference = Difference(
        metric=measured.metric,
        reference=float(measured.reference.mean()),
        value=float(measured.other.mean()),
        difference=mean,
        interval=interval,
        interval_by="score" if few or bootstrapped is None else "bootstrap",
        p=randomisation_test(differences),
        p_corrected=1.0,
        effect_size=mean / spread if spread else None,
        detectable=None,
        over_seeds=seed_interval(measured.reference.mean(axis=1), measured.other.mean(axis=1)),
        users=_counts(measured.own, metric.larger_is_better is not False),
        outcome="none",
    )

    def of_tests(num_tests: int) -> Difference:
        certain = normal_quantile(1.0 - LEVEL / num_tests / 2.0) + normal_quantile(POWER)
        return replace(difference, detectable=certain * error if spread else None)

    return of_tests


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with p-values corrected together, and their outcomes. Sign tests are corrected among themselves."""
    by_mean = holm([one.p for one in differences])
    counted = [one.users for one in differences if one.users is not None]
    by_sign = iter(holm([users.p for users in counted]))
    answers = []
    for one, p_corrected in zip(differences, by_mean, strict=True):
        users = None if one.users is None else replace(one.users, p_corrected=next(by_sign))
        answers.append(replace(one, p_corrected=p_corrected, users=users))
    return [replace(one, outcome=_outcome(one)) for one in answers]


def seed_interval(reference: np.ndarray, other: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % interval of a difference over training seeds; None unless both sides have several.

    Welch's interval (1947): seeds of the two sides are independent, and may vary by different amounts. The degrees of freedom are
    rounded down.

    Args:
        reference: (seeds,) the metric of the reference under each seed.
        other: (seeds,) that of the other side.
    """
    if min(reference.size, other.size) < 2:
        return None
    mean = float(other.mean() - reference.mean())
    squares = [float(values.var(ddof=1)) / values.size for values in (reference, other)]
    if sum(squares) == 0.0:
        return mean, mean
    degrees = sum(squares) ** 2 / sum(
        square**2 / (values.size - 1) for square, values in zip(squares, (reference, other), strict=True)
    )
    half = student_quantile(max(1, int(degrees + 1e-9))) * math.sqrt(sum(squares))
    return mean - half, mean + half


def _without_rounding(differences: np.ndarray) -> np.ndarray:
    """Return differences with 0 where only rounding differs."""
    return np.where(np.abs(differences) < _ROUNDING, 0.0, differences)


def _counts(own: tuple[np.ndarray, np.ndarray] | None, larger_is_better: bool) -> UserCounts | None:
    """Return how many users each side serves better, without users for whom a value is not defined."""
    if own is None:
        return None
    differences = _without_rounding(own[1] - own[0] if larger_is_better else own[0] - own[1])
    better, worse = int((differences > 0.0).sum()), int((differences < 0.0).sum())
    equal = int((differences == 0.0).sum())
    return UserCounts(better, worse, equal, sign_test(better, worse), 1.0)


def _outcome(one: Difference) -> Outcome:
    """Return the verdict: by the corrected test over users, and by the interval over seeds where there is one."""
    if one.p_corrected >= LEVEL:
        return "none"
    if one.over_seeds is not None and one.over_seeds[0] <= 0.0 <= one.over_seeds[1]:
        return "unclear"
    larger_is_better = metric_of(one.metric).larger_is_better
    if larger_is_better is None:
        return "differs"
    return "better" if (one.difference > 0.0) == larger_is_better else "worse"
