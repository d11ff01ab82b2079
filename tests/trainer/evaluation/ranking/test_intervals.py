"""Intervals over users: equal to DeLong's if each user has one impression, correct if impressions of a user are correlated."""

import numpy as np
import pytest

from tests.trainer.evaluation.ranking.scored import random_judged
from trainer.evaluation.confidence import wilson
from trainer.evaluation.ranking.intervals import intervals_of, standard_errors
from trainer.evaluation.ranking.judged import Judged, areas_of, count_scores, sums_of
from trainer.evaluation.ranking.metrics import metrics_of


def metrics_and_intervals(judged: Judged) -> tuple[dict[str, float], dict[str, list[float]]]:
    metrics = metrics_of(sums_of(judged), areas_of(count_scores(judged)))
    return metrics, intervals_of(judged, metrics)


def errors_of(judged: Judged) -> dict[str, float]:
    return standard_errors(judged, metrics_of(sums_of(judged), areas_of(count_scores(judged))))


def delong_error(judged: Judged) -> float:
    """By the definition: the variances of each impression's share of the other class that it beats."""
    positives, negatives = judged.scores[judged.positive], judged.scores[~judged.positive]
    beats = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    return float(
        np.sqrt(beats.mean(axis=1).var(ddof=1) / positives.size + beats.mean(axis=0).var(ddof=1) / negatives.size)
    )


def test_with_one_impression_per_user_the_error_of_auc_is_that_of_delong():
    judged = random_judged(1, count=800)
    alone = Judged(np.arange(800), judged.scores, judged.positive, judged.weight)
    assert errors_of(alone)["auc"] == pytest.approx(delong_error(alone), rel=3 / 400)


def test_with_one_impression_per_user_the_error_of_log_loss_is_that_of_a_mean():
    judged = random_judged(2, count=500)
    alone = Judged(np.arange(500), judged.scores, judged.positive, judged.weight)
    chance = 1 / (1 + np.exp(-judged.scores))
    losses = -np.log(np.where(judged.positive, chance, 1 - chance))
    assert errors_of(alone)["logloss"] == pytest.approx(losses.std(ddof=1) / np.sqrt(500))


def test_an_impression_seen_ten_times_by_its_user_is_no_news():
    """Ten copies of all impressions: the same metrics, and the same intervals."""
    judged = random_judged(3, count=200)
    copies = np.repeat(np.arange(200), 10)
    metrics, intervals = metrics_and_intervals(judged)
    copied_metrics, copied = metrics_and_intervals(judged.take(copies))
    for name in intervals:
        assert copied_metrics[name] == pytest.approx(metrics[name])
        assert copied[name] == pytest.approx(intervals[name])


def test_intervals_are_as_wide_as_metrics_differ_between_samples_of_users():
    """Users have ten impressions with correlated clicks: the spread of metrics over many draws is the standard error."""
    random = np.random.default_rng(5)
    values, errors = [], []
    for _ in range(200):
        shift = np.repeat(random.normal(size=80), 10)
        scores = random.normal(size=800) + shift / 2
        positive = random.random(800) < 1 / (1 + np.exp(-scores - shift))
        judged = Judged(np.repeat(np.arange(80), 10), scores, positive, np.ones(800))
        metrics, errors_by_name = metrics_and_intervals(judged)[0], errors_of(judged)
        values.append(list(metrics.values()))
        errors.append([errors_by_name[name] for name in metrics])
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(values, axis=0, ddof=1), rtol=0.2)


def test_a_metric_without_a_value_has_no_interval():
    judged = Judged(np.asarray([0, 1, 1]), np.zeros(3), np.ones(3, bool), np.ones(3))
    metrics, intervals = metrics_and_intervals(judged)
    assert set(intervals) == {"pr_auc", "logloss", "calibration"}
    assert intervals["calibration"] == [metrics["calibration"]] * 2  # both users have the same
    empty = Judged(*(np.zeros(0) for _ in range(4)))
    assert intervals_of(empty, metrics_of(sums_of(empty), areas_of(count_scores(empty)))) == {}


def test_bounds_of_a_rate():
    low, high = wilson(np.asarray([0.0, 0.5, 1.0]), np.asarray([10, 100, 10]))
    assert low == pytest.approx([0.0, 0.4038, 0.7225], abs=1e-4)
    assert high == pytest.approx([0.2775, 0.5962, 1.0], abs=1e-4)
