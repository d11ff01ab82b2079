"""Differences of two models: figures by hand, verdicts, and how often they are right where the truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from tests.support.evaluations import ranks_to_metrics
from trainer.comparison.differences import Difference, Measured, differences_of, seed_interval
from trainer.evaluation.confidence import difference_interval


def one_difference(reference: np.ndarray, other: np.ndarray, metric: str = "ndcg@10", **options: int) -> Difference:
    reference, other = np.atleast_2d(reference), np.atleast_2d(other)
    own = (reference.mean(axis=0), other.mean(axis=0))
    settings = {"num_resamples": 2000, "seed": 1} | options
    return differences_of([Measured(metric, reference, other, own)], **settings)[0]


def test_the_figures_of_a_difference() -> None:
    generator = np.random.default_rng(0)
    reference = generator.random(500)
    other = np.clip(reference + generator.normal(0.05, 0.2, 500), 0.0, 1.0)
    one = one_difference(reference, other)
    paired = other - reference
    assert one.difference == pytest.approx(paired.mean())
    assert one.relative == pytest.approx(paired.mean() / reference.mean())
    assert one.effect_size == pytest.approx(paired.mean() / paired.std(ddof=1))
    assert one.p == one.p_corrected == pytest.approx(stats.ttest_rel(other, reference).pvalue, rel=0.1)
    expected = stats.bootstrap((paired,), np.mean, method="percentile", rng=generator).confidence_interval
    assert one.interval == pytest.approx((expected.low, expected.high), abs=0.002)
    assert (one.interval_by, one.outcome) == ("bootstrap", "better")
    assert one.users is not None
    assert (one.users.better, one.users.worse) == ((paired > 0).sum(), (paired < 0).sum())
    assert one.users.better + one.users.worse + one.users.equal == 500


def test_less_is_better_for_a_loss_and_nothing_is_better_for_calibration() -> None:
    generator = np.random.default_rng(0)
    reference = generator.random(400)
    other = reference + generator.normal(0.1, 0.2, 400)
    assert one_difference(reference, other, "logloss/click").outcome == "worse"
    assert one_difference(other, reference, "logloss/click").outcome == "better"
    assert one_difference(reference, other, "calibration/click").outcome == "differs"
    loss = one_difference(reference, other, "logloss/click")
    assert loss.users is not None
    assert loss.users.worse > loss.users.better


def test_few_users_that_differ_have_a_score_interval() -> None:
    reference = np.repeat([0.0, 1.0], 500)
    other = reference.copy()
    other[:6] = 1.0
    one = one_difference(reference, other, "hr@10")
    assert one.interval_by == "score"
    assert one.interval == difference_interval(other - reference)
    assert one.p == pytest.approx(2.0**-5)  # McNemar's: six of six


def test_the_verdict_is_by_the_corrected_p_value() -> None:
    hits = [np.repeat([1.0, -1.0, 0.0], counts) for counts in ((19, 7, 74), (13, 13, 74))]
    measured = [
        Measured(name, np.zeros((1, 100)), of[None], None) for name, of in zip(("hr@5", "hr@10"), hits, strict=True)
    ]
    alone = differences_of(measured[:1], 20, 1)[0]
    both = differences_of(measured, 20, 1)
    assert (alone.outcome, both[0].outcome) == ("better", "none")
    assert 0.025 < alone.p < 0.05 < both[0].p_corrected == 2.0 * alone.p
    assert both[0].detectable is not None
    assert alone.detectable is not None
    assert both[0].detectable > alone.detectable


def test_equal_models_have_no_difference() -> None:
    values = np.random.default_rng(0).random(300)
    one = one_difference(values, values)
    assert (one.difference, one.p, one.outcome, one.detectable) == (0.0, 1.0, "none", None)


def test_rounding_of_means_over_seeds_is_no_difference() -> None:
    seeds = np.random.default_rng(0).random((3, 200))
    one = one_difference(seeds, seeds[::-1])
    assert one.users is not None
    assert (one.users.equal, one.p) == (200, 1.0)


def test_the_interval_over_seeds_is_welchs() -> None:
    reference, other = np.asarray([0.1, 0.2, 0.3]), np.asarray([0.31, 0.35, 0.30, 0.34])
    expected = stats.ttest_ind(other, reference, equal_var=False).confidence_interval()
    low, high = seed_interval(reference, other) or (0.0, 0.0)
    assert low <= expected.low < expected.high <= high  # degrees of freedom are rounded down
    equal = seed_interval(np.asarray([0.0, 1.0, 2.0]), np.asarray([5.0, 6.0, 7.0]))  # exactly 4 degrees
    exact = stats.ttest_ind([5.0, 6.0, 7.0], [0.0, 1.0, 2.0], equal_var=False).confidence_interval()
    assert equal == pytest.approx((exact.low, exact.high))
    assert seed_interval(reference, other[:1]) is None


def test_a_difference_must_be_clear_over_seeds_too() -> None:
    generator = np.random.default_rng(0)
    users = generator.random(2000)
    reference = users + np.asarray([[-0.1], [0.0], [0.1]])  # another seed changes more than another model
    assert one_difference(reference, reference + 0.02 + generator.normal(0, 0.01, (3, 2000))).outcome == "unclear"
    steady = users + np.asarray([[-0.001], [0.0], [0.001]])
    assert one_difference(steady, steady + 0.02 + generator.normal(0, 0.01, (3, 2000))).outcome == "better"


def draws_of_ranks(generator: np.random.Generator, num_users: int, shifts: tuple[float, ...]) -> list[np.ndarray]:
    """Return ranks of models on the same users: users differ in how predictable they are, models in noise and by a shift."""
    ease = generator.normal(0.0, 2.0, num_users)
    noise = (generator.normal(0.0, 1.0, num_users) for _ in shifts)
    return [
        np.maximum(1, np.exp(np.clip(3.9 - shift + ease + of_model, 0.0, 8.0)).astype(np.int64))
        for shift, of_model in zip(shifts, noise, strict=True)
    ]


def outcomes(generator: np.random.Generator, num_users: int, shift: float) -> list[str]:
    """Return the outcome in each metric of a model with this shift compared with one without."""
    metrics = [ranks_to_metrics(ranks) for ranks in draws_of_ranks(generator, num_users, (0.0, shift))]
    names = ("hr@10", "ndcg@10", "mrr")
    measured = [Measured(name, metrics[0][name][None], metrics[1][name][None], None) for name in names]
    return [one.outcome for one in differences_of(measured, 20, 1)]  # the interval decides nothing here


def test_two_seeds_of_one_model_rarely_differ() -> None:
    """In at most 5 % of draws some metric differs after the correction; 300 draws of 500 users."""
    generator = np.random.default_rng(10)
    false = sum(set(outcomes(generator, 500, 0.0)) != {"none"} for _ in range(300))
    assert false <= 26  # 0.05 x 300 plus three standard errors


def test_a_planted_difference_is_found_as_often_as_its_power_says() -> None:
    generator = np.random.default_rng(11)
    pairs = [[ranks_to_metrics(r)["ndcg@10"] for r in draws_of_ranks(generator, 500, (0.0, 0.3))] for _ in range(300)]
    paired = np.concatenate([other - reference for reference, other in pairs])
    power = stats.norm.cdf(abs(paired.mean()) / (paired.std() / math.sqrt(500)) - 1.96)
    assert 0.5 < power < 0.95
    measured = [Measured("ndcg@10", a[None], b[None], None) for a, b in pairs]
    found = np.mean([differences_of([one], 20, 1)[0].outcome == "better" for one in measured])
    assert found == pytest.approx(power, abs=0.09)


def test_the_detectable_difference_is_found_in_80_of_100_cases() -> None:
    generator = np.random.default_rng(12)
    spread = 0.25
    detectable = one_difference(np.zeros(800), generator.normal(0.0, spread, 800)).detectable
    assert detectable == pytest.approx((1.959964 + 0.841621) * spread / math.sqrt(800), rel=0.06)
    draws = generator.normal((1.959964 + 0.841621) * spread / math.sqrt(800), spread, (400, 800))
    found = np.mean(
        [one_difference(np.zeros(800), of_users, num_resamples=10).outcome == "better" for of_users in draws]
    )
    assert found == pytest.approx(0.8, abs=0.06)
