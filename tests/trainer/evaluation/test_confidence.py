"""Confidence intervals: within the range, around the estimate, and with the coverage that they claim, also next to an end."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from cluster.study.statistics import estimate
from trainer.evaluation.confidence import (
    NOT_NEGATIVE,
    SHARE,
    Z95,
    Range,
    difference_interval,
    mean_interval,
    score_interval,
    wilson,
)
from trainer.evaluation.next_item.user_values import UserValues, intervals
from trainer.evaluation.ranking.intervals import intervals_of
from trainer.evaluation.ranking.judged import Areas, Judged, areas_of, count_scores, sums_of
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.tasks.metrics import range_of

DRAWS = 2000
DIFFERENCES = SHARE.of_differences


def coverage(draw: Callable[[np.random.Generator], np.ndarray], truth: float, within: Range) -> float:
    """Return the share of samples with the true mean in their interval."""
    random = np.random.default_rng(11)
    bounds = np.asarray([mean_interval(draw(random), within) for _ in range(DRAWS)])
    return float(((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean())


def hits(num_users: int, rate: float) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda random: (random.random(num_users) < rate).astype(np.float64)


def gains(num_users: int, rate: float) -> Callable[[np.random.Generator], np.ndarray]:
    """Values like those of ndcg@10: 0 unless the target is in the first ten places, at any of them."""

    def draw(random: np.random.Generator) -> np.ndarray:
        gain = 1 / np.log2(random.integers(1, 11, num_users) + 1)
        return np.where(random.random(num_users) < rate, gain, 0.0)

    return draw


MEAN_GAIN = float(np.mean(1 / np.log2(np.arange(1, 11) + 1)))


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("num_users", [400, 1000])
def test_intervals_of_hit_rates_hold_the_truth_95_times_in_100(num_users, rate):
    assert 0.93 <= coverage(hits(num_users, rate), rate, SHARE) <= 0.97


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("num_users", [400, 1000])
def test_intervals_of_gains_hold_the_truth_95_times_in_100(num_users, rate):
    assert 0.93 <= coverage(gains(num_users, rate), rate * MEAN_GAIN, SHARE) <= 0.97


@pytest.mark.parametrize("rate", [0.003, 0.01, 0.99, 0.997])
def test_near_an_end_they_hold_the_truth_at_least_90_times_in_100(rate):
    """Where most samples have no hit at all, so that the spread of the sample is 0."""
    for num_users in (30, 100, 300):
        assert coverage(hits(num_users, rate), rate, SHARE) >= 0.9
        if rate < 0.5:
            assert coverage(gains(num_users, rate), rate * MEAN_GAIN, SHARE) >= 0.9


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_intervals_of_paired_differences_hold_the_truth_95_times_in_100(rate):
    def draw(random: np.random.Generator) -> np.ndarray:
        both = random.random(400)  # the same users are easy for both models
        first, second = (both + random.normal(scale=0.1, size=400) < limit for limit in (rate, 1.3 * rate))
        return second.astype(np.float64) - first

    truth = float(np.mean([draw(np.random.default_rng(seed)).mean() for seed in range(4000)]))
    assert 0.93 <= coverage(draw, truth, DIFFERENCES) <= 0.97


@pytest.mark.parametrize(
    ("first", "second"), [(0.002, 0.002), (0.003, 0.006), (0.01, 0.01), (0.02, 0.01), (0.0, 0.005)]
)
@pytest.mark.parametrize("num_users", [100, 400, 1000])
def test_intervals_of_differences_of_rare_hits_and_gains_hold_the_truth_at_least_90_times_in_100(
    num_users, first, second
):
    """Where a few users, or none, tell two models apart, so that the spread of the sample is too small or 0."""
    for kind, mean in ((hits, 1.0), (gains, MEAN_GAIN)):
        of_first, of_second = kind(num_users, first), kind(num_users, second)
        held = coverage(lambda random: of_second(random) - of_first(random), (second - first) * mean, DIFFERENCES)  # noqa: B023
        assert held >= 0.9, (kind, held)


@pytest.mark.parametrize(("ups", "downs", "pairs"), [(0, 1, 44), (0, 0, 30), (12, 2, 100), (3, 0, 8)])
def test_the_bounds_of_paired_shares_are_where_the_score_is_1_96(ups, downs, pairs):
    values = np.asarray([1.0] * ups + [-1.0] * downs + [0.0] * (pairs - ups - downs))
    low, high = difference_interval(values)
    assert low < values.mean() < high
    assert [score_of(bound, ups, downs, pairs) for bound in (low, high)] == pytest.approx([Z95, -Z95], abs=1e-3)
    if ups == downs == 0:
        assert high == pytest.approx(Z95**2 / (pairs + Z95**2))


def score_of(difference: float, ups: int, downs: int, pairs: int) -> float:
    """Tango's statistic, with the most likely share of downs found by trying."""
    shares = np.linspace(max(0.0, -difference), (1.0 - difference) / 2, 200_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [
            n * np.log(p)
            for n, p in (
                (ups, shares + difference),
                (downs, shares),
                (pairs - ups - downs, 1 - 2 * shares - difference),
            )
            if n
        ]
    share = shares[int(np.nanargmax(np.sum(logs, axis=0)))]
    variance = pairs * (2 * share + difference * (1 - difference))
    return (ups - downs - pairs * difference) / math.sqrt(variance)


def test_intervals_of_differences_scale_and_turn_with_the_values():
    values = np.random.default_rng(3).choice([-1.0, 0.0, 0.0, 0.0, 1.0, 1.0], 50)
    low, high = difference_interval(values)
    assert difference_interval(-values) == pytest.approx((-high, -low))
    assert difference_interval(values / 4) == pytest.approx((low / 4, high / 4))


def test_intervals_of_values_without_an_upper_end_hold_the_truth_95_times_in_100():
    assert 0.93 <= coverage(lambda random: random.exponential(0.1, 300), 0.1, NOT_NEGATIVE) <= 0.97


def test_intervals_of_hit_rates_are_those_of_wilson():
    for num_hits in range(8):
        values = np.asarray([1.0] * num_hits + [0.0] * (7 - num_hits))
        low, high = wilson(np.asarray(num_hits / 7), np.asarray(7.0))
        assert intervals({"hr@1": UserValues(values, SHARE)})["hr@1"] == pytest.approx([low, high])


@pytest.mark.parametrize("within", [SHARE, DIFFERENCES, NOT_NEGATIVE, NOT_NEGATIVE.of_differences])
def test_intervals_of_any_error_stay_in_the_range_and_around_the_estimate(within):
    low, high = max(within.low, -5.0), min(within.high, 5.0)
    for middle in [*np.linspace(low, high, 21), np.nextafter(low, 9.0), np.nextafter(high, -9.0)]:
        for error in (0.0, 1e-9, 1e-3, 0.3, 2.0):
            for count in (None, 1, 2, 50):
                below, above = score_interval(float(middle), error, within, count)
                assert within.low <= below <= middle <= above <= within.high, (middle, error, count)


def test_a_larger_error_makes_a_wider_interval():
    for within in (SHARE, DIFFERENCES, NOT_NEGATIVE, NOT_NEGATIVE.of_differences):
        widths = [np.ptp(score_interval(0.2, error, within)) for error in (0.001, 0.01, 0.05, 0.1, 0.2)]
        assert widths == sorted(widths), within


def test_with_a_small_error_they_are_two_standard_errors_to_each_side():
    for within in (SHARE, DIFFERENCES, NOT_NEGATIVE, NOT_NEGATIVE.of_differences):
        assert score_interval(0.4, 1e-4, within) == pytest.approx((0.4 - 1.96e-4, 0.4 + 1.96e-4), abs=2e-7)


def test_users_without_any_hit_do_not_prove_that_there_never_is_one():
    low, high = intervals({"hr@10": UserValues(np.zeros(20), SHARE)})["hr@10"]
    assert low == 0.0
    assert high == pytest.approx(0.1611, abs=1e-4)


def test_ranges_of_metrics():
    assert {range_of(name) for name in ("hr@10", "ndcg@5", "mrr", "auc", "gauc/click")} == {SHARE}
    assert {range_of(name) for name in ("logloss", "ne/click", "calibration")} == {NOT_NEGATIVE}


# Over seeds, and of impressions


def test_intervals_over_seeds_stay_in_the_range_of_the_metric():
    assert estimate([0.97, 0.99], None, SHARE).over_seeds[1] <= 1.0
    assert estimate([0.001, 0.02], None, SHARE).over_seeds[0] >= 0.0
    assert estimate([-0.9, -1.0], None, DIFFERENCES).over_seeds[0] >= -1.0
    assert estimate([0.01, 0.2], None, NOT_NEGATIVE).over_seeds[0] >= 0.0


def random_impressions(random: np.random.Generator, strength: float, num_users: int = 60) -> Judged:
    """Return users of five impressions with correlated clicks, and logits that separate them more or less."""
    shift = np.repeat(random.normal(size=num_users), 5)
    logits = random.normal(size=5 * num_users) * strength + shift
    positive = random.random(logits.size) < 1 / (1 + np.exp(-logits))
    return Judged(np.repeat(np.arange(num_users), 5), logits, positive, np.ones(logits.size))


@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_intervals_of_metrics_of_impressions_hold_the_truth_95_times_in_100(strength):
    def metrics(judged: Judged) -> dict[str, float]:
        return metrics_of(sums_of(judged), areas_of(count_scores(judged)))

    truth = metrics(random_impressions(np.random.default_rng(1), strength, 40_000))
    random, held = np.random.default_rng(2), dict.fromkeys(truth, 0)
    draws = 500
    for _ in range(draws):
        judged = random_impressions(random, strength)
        for name, (low, high) in intervals_of(judged, metrics(judged)).items():
            held[name] += low <= truth[name] <= high
            assert range_of(name).low <= low <= high <= range_of(name).high
    # Of 60 users about 45 have a positive: an average precision is then less certain than its linear terms show.
    least = {"pr_auc": 0.9}
    for name, count in held.items():
        assert least.get(name, 0.92) <= count / draws <= 0.98, name


@pytest.mark.slow
def test_intervals_of_average_precision_of_more_users_hold_the_truth_95_times_in_100():
    def areas(judged: Judged) -> Areas:
        return areas_of(count_scores(judged))

    truth = areas(random_impressions(np.random.default_rng(1), 1.0, 400_000)).pr_auc
    random, held, draws = np.random.default_rng(2), 0, 1000
    for _ in range(draws):
        judged = random_impressions(random, 1.0, 300)
        low, high = intervals_of(judged, metrics_of(sums_of(judged), areas(judged)))["pr_auc"]
        held += low <= truth <= high
    assert 0.93 <= held / draws <= 0.97


def test_a_perfect_order_of_few_impressions_is_not_certain():
    judged = Judged(np.arange(12), np.arange(12.0), np.arange(12) >= 6, np.ones(12))
    metrics = metrics_of(sums_of(judged), areas_of(count_scores(judged)))
    assert metrics["auc"] == 1.0
    low, high = intervals_of(judged, metrics)["auc"]
    assert 0.5 < low < 0.8
    assert high == 1.0


def test_a_single_user_leaves_nearly_everything_open():
    low, high = intervals({"mrr": UserValues(np.asarray([0.25]), SHARE)})["mrr"]
    assert low < 0.05
    assert high > 0.8
    judged = Judged(np.zeros(4, np.int64), np.arange(4.0), np.asarray([False, True, False, True]), np.ones(4))
    found = intervals_of(judged, metrics_of(sums_of(judged), areas_of(count_scores(judged))))
    assert found.keys() == {"auc", "pr_auc", "gauc"}
    assert all(high - low > 0.6 for low, high in found.values())
    assert not any(math.isnan(bound) for bounds in found.values() for bound in bounds)
