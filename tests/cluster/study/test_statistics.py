"""Intervals against tables of Student's t, paired differences and fronts worked out by hand."""

import math

import numpy as np
import pytest

from cluster.study.statistics import estimate, pareto_front
from trainer.evaluation.confidence import NOT_NEGATIVE, SHARE, mean_interval, student_quantile

UNBOUNDED = NOT_NEGATIVE.of_differences


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (29, 2.0452), (100, 1.9840)],
)
def test_student_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, abs=5e-5)


def test_the_interval_over_seeds_is_students() -> None:
    actual = estimate([0.1, 0.2, 0.3], None, UNBOUNDED)
    half = 4.302653 * 0.1 / 3**0.5  # the standard deviation of 0.1, 0.2, 0.3 is 0.1
    assert actual.mean == pytest.approx(0.2)
    assert actual.over_seeds == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    assert actual.over_users is None


def test_a_single_seed_has_no_interval_over_seeds() -> None:
    assert estimate([0.1], None, SHARE).over_seeds is None


def test_the_interval_over_users_takes_each_users_mean_over_seeds() -> None:
    # Two users, two seeds: their means are 0.5 and 1.0.
    of_users = np.asarray([[0.0, 1.0], [1.0, 1.0]])
    actual = estimate([0.5, 1.0], of_users, SHARE)
    assert actual.over_users == mean_interval(np.asarray([0.5, 1.0]), SHARE)


def test_users_whose_values_differ_alike_leave_no_doubt() -> None:
    actual = estimate([0.25, 0.25], np.full((2, 7), 0.25), SHARE)
    assert actual.over_users == pytest.approx((0.25, 0.25))


def test_the_front_is_what_nothing_beats() -> None:
    costs = [4.0, 1.0, 2.0, 3.0, 2.0]
    qualities = [0.9, 0.2, 0.5, 0.4, 0.3]
    assert pareto_front(costs, qualities) == [1, 2, 0]


def test_on_the_front_equals_stay_together_and_a_dearer_equal_falls() -> None:
    assert pareto_front([1.0, 1.0, 2.0], [0.5, 0.5, 0.5]) == [0, 1]
    assert pareto_front([2.0, 1.0], [0.1, 0.1]) == [1]
    assert pareto_front([], []) == []


def test_a_mean_over_a_seed_without_a_value_is_not_defined() -> None:
    actual = estimate([0.5, math.nan], np.ones((2, 3)), UNBOUNDED)
    assert not actual.is_defined
    assert (actual.over_seeds, actual.over_users) == (None, None)
