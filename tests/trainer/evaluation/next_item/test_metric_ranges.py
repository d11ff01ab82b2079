"""Every metric of both tasks is in its range and equals brute force, for any held-out events and scores."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sharding.world import World
from tests.trainer.evaluation.next_item.values import EVENTS, mean_values, values_of
from tests.trainer.evaluation.ranking.scored import plain_auc, plain_average_precision
from trainer.evaluation.next_item.scoring import ItemShard, Query, rank_items
from trainer.evaluation.ranking.judged import Judged, areas_of, auc_of_users, count_scores, sums_of
from trainer.evaluation.ranking.metrics import metrics_of

KS = [1, 2, 5, 50]
AT_K = ("hr", "ndcg", "recall", "precision", "map", "debiased_ndcg")
ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Histories:
    """Users with scores of all items (Q, V), items that were seen, and held-out items, of which some repeat or are unknown."""

    scores: np.ndarray
    seen: list[list[int]]
    targets: list[list[int]]


def random_histories(seed: int) -> Histories:
    """Few items and few values of scores: most targets repeat, tie with other items, or were seen before."""
    random = np.random.default_rng(seed)
    num_users, num_items = int(random.integers(1, 9)), int(random.integers(1, 8))
    scores = random.integers(-2, 3, (num_users, num_items)).astype(np.float32)
    scores[random.random(scores.shape) < 0.05] = random.choice([np.nan, np.inf, -np.inf])
    seen = [random.integers(0, num_items + 1, random.integers(0, 5)).tolist() for _ in range(num_users)]
    targets = [random.integers(0, num_items + 1, random.integers(1, 9)).tolist() for _ in range(num_users)]
    return Histories(scores, seen, targets)


def packed(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate(([0], np.cumsum([len(values) for values in lists]))).astype(np.int64)
    return np.asarray([v for values in lists for v in values], dtype=np.int64), offsets


def metrics_of_histories(histories: Histories, mask_seen: bool) -> dict[str, np.ndarray]:
    """As evaluation computes them: exact ranks, then metrics. Vectors have one dimension, so that scores are as given."""
    targets, offsets = packed(histories.targets)
    ranks = []
    for user, seen, own in zip(histories.scores, histories.seen, histories.targets, strict=True):
        query = Query(torch.ones(1, 1), *packed([seen]), *packed([own]))
        shard = ItemShard(torch.from_numpy(user)[:, None], first_id=1)
        ranks.append(rank_items(query, shard, 0, mask_seen, 3, ALONE).target_ranks)
    return values_of(targets, np.concatenate(ranks), offsets, KS)


def plain_metrics_of(scores: np.ndarray, seen: list[int], targets: list[int], mask_seen: bool, k: int) -> list[float]:
    """Return AT_K and mrr of one user: down the list of all items, at each place a relevant item or not."""
    left = [
        item
        for item, score in enumerate(scores, start=1)
        if not (mask_seen and item in seen) and score > -math.inf  # a score that is not a number is not larger either
    ]
    listed = sorted(left, key=lambda item: (-scores[item - 1], item))
    known = {target for target in targets if target != 0}
    num_relevant = len(known) + targets.count(0)  # unknown items cannot be distinguished
    places = [place for place, item in enumerate(listed, start=1) if item in known]
    weights = [1 / math.sqrt(EVENTS[item - 1]) if item else 1.0 for item in [*sorted(known), *[0] * targets.count(0)]]
    weighted = math.fsum(
        1 / math.sqrt(EVENTS[item - 1]) / math.log2(place + 1)
        for place, item in enumerate(listed[:k], start=1)
        if item in known
    )
    best = math.fsum(w / math.log2(place + 1) for place, w in enumerate(sorted(weights, reverse=True)[:k], start=1))
    gain = math.fsum(1 / math.log2(place + 1) for place in places if place <= k)
    ideal = math.fsum(1 / math.log2(place + 1) for place in range(1, min(k, num_relevant) + 1))
    precisions = [number / place for number, place in enumerate(places, start=1) if place <= k]
    return [
        float(any(place <= k for place in places)),
        gain / ideal,
        len(precisions) / num_relevant,
        len(precisions) / k,
        math.fsum(precisions) / num_relevant,
        weighted / best,
        1 / places[0] if places else 0.0,
    ]


@pytest.mark.parametrize("mask_seen", [True, False])
def test_metrics_of_the_next_item_equal_brute_force_and_never_leave_their_range(mask_seen):
    for seed in range(150):
        histories = random_histories(seed)
        columns = metrics_of_histories(histories, mask_seen)
        for k in KS:
            expected = [
                plain_metrics_of(*of_user, mask_seen, k)
                for of_user in zip(histories.scores, histories.seen, histories.targets, strict=True)
            ]
            actual = np.stack([*(columns[f"{name}@{k}"] for name in AT_K), columns["mrr"]], axis=1)
            np.testing.assert_allclose(actual, expected, rtol=1e-12, err_msg=f"seed {seed}, k {k}")
        for name, values in columns.items():
            assert values.min() >= 0.0, (seed, name)
            assert values.max() <= 1.0, (seed, name)
        assert all(0.0 <= value <= 1.0 for value in mean_values(columns).values())


def test_an_item_that_repeats_among_the_targets_is_found_once():
    columns = values_of(np.asarray([7, 7, 7, 4, 4]), np.asarray([1, 1, 1, 3, 3]), np.asarray([0, 3, 5]), [1, 5])
    assert columns["ndcg@1"].tolist() == [1.0, 0.0]
    assert columns["ndcg@5"].tolist() == [1.0, 0.5]
    assert columns["hr@1"].tolist() == columns["recall@1"].tolist() == columns["map@1"].tolist() == [1.0, 0.0]
    assert columns["recall@5"].tolist() == [1.0, 1.0]
    assert columns["map@5"].tolist() == [1.0, 1 / 3]
    assert columns["mrr"].tolist() == [1.0, 1 / 3]


def test_a_seen_item_that_repeats_is_missed_once():
    """Rank 0 of item 5 twice, which was masked: one relevant item of two was found."""
    columns = values_of(np.asarray([5, 5, 2]), np.asarray([0, 0, 1]), np.asarray([0, 3]), [10])
    assert columns["ndcg@10"][0] == pytest.approx(1.0 / (1.0 + 1 / math.log2(3)))
    assert columns["recall@10"][0] == columns["map@10"][0] == 0.5


def test_a_perfect_list_of_any_length_and_order_has_exactly_one():
    random = np.random.default_rng(3)
    for count in range(1, 200, 7):
        ranks = random.permutation(count) + 1
        columns = values_of(ranks, ranks, np.asarray([0, count]), [count, 1000])
        for name in ("ndcg", "recall", "map"):
            assert columns[f"{name}@{count}"][0] == columns[f"{name}@1000"][0] == 1.0


# Impressions


def random_impressions(seed: int) -> Judged:
    """Users with none, one or several impressions, weights that are no whole numbers, tied, infinite and missing scores."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 40))
    user = np.sort(random.integers(0, 6, count))
    scores = np.round(random.normal(scale=3, size=count)) if seed % 2 else random.normal(scale=3, size=count)
    if seed % 5 == 0:
        scores[random.random(count) < 0.1] = random.choice([np.nan, np.inf, -np.inf, 1e6])
    positive = random.random(count) < random.choice([0.0, 0.1, 0.5, 1.0])
    if seed % 3 == 0:  # a perfect or a perfectly wrong order
        scores = np.where(positive == bool(seed % 2), 1.0, -1.0) * (1 + random.integers(0, 3, count))
    return Judged(user, scores, positive, np.where(positive, 1.0, 1 / random.choice([1.0, 0.3, 0.07])))


def plain_metrics_of_impressions(judged: Judged) -> dict[str, float]:
    """By their definitions, impression by impression and pair by pair; NaN where a metric is not defined."""
    finite = bool(np.isfinite(judged.scores).all())
    ordered = Judged(
        judged.user, np.where(np.isnan(judged.scores), -np.inf, judged.scores), judged.positive, judged.weight
    )
    lost = predicted = 0.0
    for score, positive, weight in zip(judged.scores.clip(-1000, 1000), judged.positive, judged.weight, strict=True):
        right = score if positive else -score
        lost += weight * (math.log1p(math.exp(-right)) if right > -700 else -right)
        predicted += weight * (1 / (1 + math.exp(-score)) if score > -700 else 0.0)
    total, clicked = judged.weight.sum(), judged.weight[judged.positive].sum()
    rate = clicked / total
    logloss = lost / total if finite else math.nan
    spread = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate) if 0 < rate < 1 else math.nan
    aucs = [
        (plain_auc(own), own.weight.sum())
        for number in np.unique(judged.user)
        if len(set((own := ordered.take(ordered.user == number)).positive.tolist())) == 2
    ]
    return {
        "auc": plain_auc(ordered),
        "pr_auc": plain_average_precision(ordered),
        "gauc": sum(auc * weight for auc, weight in aucs) / sum(weight for _, weight in aucs) if aucs else math.nan,
        "logloss": logloss,
        "ne": logloss / spread,
        "calibration": predicted / clicked if clicked and finite else math.nan,
    }


def test_metrics_of_impressions_equal_brute_force_and_never_leave_their_range():
    for seed in range(300):
        judged = random_impressions(seed)
        actual = metrics_of(sums_of(judged), areas_of(count_scores(judged)))
        expected = plain_metrics_of_impressions(judged)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert actual[name] == pytest.approx(value, rel=1e-8, abs=1e-8, nan_ok=True), (seed, name)
            if not math.isnan(value):
                assert actual[name] >= 0.0, (seed, name)
                assert actual[name] <= (1.0 if name in ("auc", "pr_auc", "gauc") else math.inf), (seed, name)
        of_users = auc_of_users(judged).auc
        assert np.nanmax(of_users, initial=0.0) <= 1.0, seed
        assert np.nanmin(of_users, initial=1.0) >= 0.0, seed
