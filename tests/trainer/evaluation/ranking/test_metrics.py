"""Metrics of impressions: as scikit-learn has them, as their definitions say, and the same however impressions are shared."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from tests.trainer.evaluation.ranking.scored import plain_auc, plain_metrics, random_judged
from trainer.evaluation.ranking.judged import (
    Judged,
    Sums,
    areas_of,
    auc_of_users,
    count_scores,
    merge_counts,
    pairs_in_order,
    precision_sum,
    sums_of,
)
from trainer.evaluation.ranking.metrics import METRICS, metrics_of
from trainer.evaluation.ranking.names import name_of
from trainer.tasks.metrics import larger_is_better

NAMES = [metric.name for metric in METRICS]


def all_metrics(judged: Judged) -> dict[str, float]:
    return metrics_of(sums_of(judged), areas_of(count_scores(judged)))


def judged_of(scores: list[float], positive: list[int], user: list[int] | None = None) -> Judged:
    return Judged(
        np.asarray(user if user is not None else [0] * len(scores)),
        np.asarray(scores, dtype=np.float64),
        np.asarray(positive, dtype=bool),
        np.ones(len(scores)),
    )


@pytest.mark.parametrize("levels", [2, 12, None])
@pytest.mark.parametrize("negative_weight", [1.0, 10.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_metrics_equal_their_definitions(seed, negative_weight, levels):
    judged = random_judged(seed, levels=levels, negative_weight=negative_weight)
    found = all_metrics(judged)
    assert list(found) == NAMES
    for name, value in plain_metrics(judged).items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("levels", [3, 40, None])
@pytest.mark.parametrize("negative_weight", [1.0, 4.0])
def test_areas_and_log_loss_equal_those_of_scikit_learn(levels, negative_weight):
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is among requirements/dev.txt")
    judged = random_judged(7, count=5000, levels=levels, negative_weight=negative_weight)
    found = all_metrics(judged)
    chance, weights = 1 / (1 + np.exp(-judged.scores)), judged.weight
    assert found["auc"] == pytest.approx(
        theirs.roc_auc_score(judged.positive, judged.scores, sample_weight=weights), rel=1e-12
    )
    precision = theirs.average_precision_score(judged.positive, judged.scores, sample_weight=weights)
    assert found["pr_auc"] == pytest.approx(precision, rel=1e-9)
    assert found["logloss"] == pytest.approx(theirs.log_loss(judged.positive, chance, sample_weight=weights), rel=1e-9)
    by_user = auc_of_users(judged)
    for user, auc in zip(by_user.user, by_user.auc, strict=True):
        own = judged.take(judged.user == user)
        if not math.isnan(auc):
            assert auc == pytest.approx(theirs.roc_auc_score(own.positive, own.scores, sample_weight=own.weight))


def test_areas_equal_those_of_torchmetrics():
    judged = random_judged(3, count=2000, levels=30)
    found, arguments = (
        all_metrics(judged),
        (torch.from_numpy(judged.scores).sigmoid(), torch.from_numpy(judged.positive).long()),
    )
    assert found["auc"] == pytest.approx(BinaryAUROC()(*arguments).item(), abs=1e-6)
    assert found["pr_auc"] == pytest.approx(BinaryAveragePrecision()(*arguments).item(), abs=1e-6)


def test_by_hand():
    # Users 1 and 2 have both classes; user 3 has no click and counts for all metrics but gauc.
    found = all_metrics(judged_of([2, 0, 1, 1, 0, -1], [1, 0, 1, 0, 0, 0], [1, 1, 2, 2, 2, 3]))
    assert found["gauc"] == pytest.approx((2 * 1.0 + 3 * 0.75) / 5)
    assert found["auc"] == pytest.approx((4 + 3.5) / 8)
    assert found["pr_auc"] == pytest.approx((1 / 1 + 2 / 3) / 2), "the second positive ties with a negative"
    chances = [1 / (1 + math.exp(-z)) for z in (2, 0, 1, 1, 0, -1)]
    assert found["calibration"] == pytest.approx(sum(chances) / 2)


def test_equal_scores_have_an_auc_of_one_half():
    found = all_metrics(judged_of([0.5] * 6, [1, 0, 1, 0, 0, 1], [1, 1, 1, 2, 2, 2]))
    assert found["auc"] == found["gauc"] == 0.5


def test_who_predicts_the_mean_has_an_ne_of_one():
    positive = [1, 0, 0, 0, 1]
    found = all_metrics(judged_of([math.log(0.4 / 0.6)] * 5, positive))
    assert found["ne"] == pytest.approx(1.0, abs=1e-9)
    assert found["calibration"] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("judged", "undefined"),
    [
        (judged_of([], []), set(NAMES)),
        (judged_of([1.0, 2.0], [0, 0]), {"auc", "pr_auc", "gauc", "ne", "calibration"}),
        (judged_of([1.0, 2.0], [1, 1]), {"auc", "gauc", "ne"}),
        (judged_of([1.0, 2.0], [0, 1], [0, 1]), {"gauc"}),
    ],
    ids=["no impressions", "no positives", "no negatives", "no user with both"],
)
def test_an_undefined_metric_is_nan(judged, undefined):
    found = all_metrics(judged)
    assert {name for name, value in found.items() if math.isnan(value)} == undefined


def test_a_score_that_is_no_number_is_last_and_has_no_loss():
    found = all_metrics(judged_of([math.nan, 0.0, 1.0], [1, 0, 1]))
    assert found["auc"] == 0.5
    assert math.isnan(found["logloss"])
    assert math.isnan(found["calibration"])


def test_a_confident_mistake_costs_its_logit():
    found = all_metrics(judged_of([60.0, -60.0, 800.0, 0.0], [0, 1, 1, 0]))
    assert found["logloss"] == pytest.approx((120 + math.log(2)) / 4)


@pytest.mark.parametrize("num_shares", [2, 3, 7])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shares_added_up_are_bit_for_bit_the_whole(seed, num_shares):
    judged = random_judged(seed, count=500)
    random = np.random.default_rng(seed)
    # Whole users, dealt at random, some shares without any.
    share_of = random.integers(0, num_shares, judged.user.max() + 1)
    shares = [judged.take(share_of[judged.user] == k) for k in random.permutation(num_shares)]
    sums = sum((sums_of(share) for share in shares), Sums())
    assert sums == sums_of(judged)
    counts = merge_counts(count_scores(share) for share in shares)
    assert metrics_of(sums, areas_of(counts)) == all_metrics(judged)


def test_pairs_are_counted_and_precisions_summed_range_by_range():
    judged = random_judged(4, levels=9)
    whole = count_scores(judged)
    low = count_scores(judged.take(judged.scores < 0.2))
    high = count_scores(judged.take(judged.scores >= 0.2))
    assert pairs_in_order(low) + pairs_in_order(high, low.negatives.sum()) == pairs_in_order(whole)
    of_low = precision_sum(low, high.positives.sum(), high.negatives.sum())
    assert of_low + precision_sum(high) == precision_sum(whole)


def test_the_order_of_impressions_does_not_matter():
    judged = random_judged(5, levels=None)
    within = np.lexsort((np.random.default_rng(1).random(judged.user.size), judged.user))
    assert all_metrics(judged.take(within)) == all_metrics(judged)


def test_a_monotonic_change_of_scores_does_not_change_auc():
    judged = random_judged(6)
    changed = replace(judged, scores=np.exp(judged.scores / 3) - 7)
    before, after = all_metrics(judged), all_metrics(changed)
    assert (after["auc"], after["gauc"]) == (before["auc"], before["gauc"])
    assert after["pr_auc"] == before["pr_auc"]
    assert after["logloss"] != before["logloss"]


def test_users_have_their_own_auc():
    judged = random_judged(8)
    by_user = auc_of_users(judged)
    assert by_user.user.tolist() == sorted(set(judged.user.tolist()))
    for user, auc, weight in zip(by_user.user, by_user.auc, by_user.weight, strict=True):
        own = judged.take(judged.user == user)
        assert auc == pytest.approx(plain_auc(own), nan_ok=True)
        assert weight == own.user.size


def test_names():
    assert name_of("auc", "click", ("click",)) == "auc"
    assert name_of("gauc", "is_like", ("is_click", "is_like")) == "gauc/is_like"
    assert larger_is_better("gauc/is_like")
    assert not larger_is_better("logloss")
    assert NAMES == ["auc", "pr_auc", "gauc", "logloss", "ne", "calibration"]
