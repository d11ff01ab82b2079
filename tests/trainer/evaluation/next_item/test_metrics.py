"""Ranking metrics against a brute-force computation and against torchmetrics, and their confidence intervals."""

import itertools
import math

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import (
    RetrievalHitRate,
    RetrievalMAP,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalPrecision,
    RetrievalRecall,
)

from tests.trainer.evaluation.next_item.values import EVENTS, mean_values, values_of
from trainer.evaluation.confidence import SHARE
from trainer.evaluation.next_item.metrics import user_metrics
from trainer.evaluation.next_item.user_values import UserValues, intervals, means

KS = [1, 3, 10]
AT_K = ("hr", "ndcg", "recall", "precision", "map")
ALL_AT_K = (*AT_K, "debiased_ndcg")


def packed(ranks_of_users: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(targets, ranks, offsets) of items that all differ."""
    offsets = np.concatenate(([0], np.cumsum([len(ranks) for ranks in ranks_of_users]))).astype(np.int64)
    ranks = np.asarray([rank for ranks in ranks_of_users for rank in ranks], dtype=np.int64)
    return np.arange(1, ranks.size + 1), ranks, offsets


def brute_force(ranks: list[int], k: int) -> tuple[float, ...]:
    """Return (hr@k, ndcg@k, recall@k, precision@k, map@k, mrr) of one user, place by place down the list."""
    gain = sum(1 / math.log2(place + 1) for place in range(1, k + 1) if place in ranks)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(ranks)) + 1))
    found = [rank for rank in ranks if rank > 0]
    hits, precisions = 0, 0.0
    for place in range(1, k + 1):
        if place in ranks:
            hits += 1
            precisions += hits / place
    mrr = 1 / min(found) if found else 0.0
    return float(hits > 0), gain / ideal, hits / len(ranks), hits / k, precisions / len(ranks), mrr


def random_ranks(seed: int, num_users: int = 40, num_items: int = 15) -> list[list[int]]:
    """Distinct places per user; about a fifth of the targets cannot be ranked."""
    random = np.random.default_rng(seed)
    users = []
    for _ in range(num_users):
        count = int(random.integers(1, 6))
        ranks = random.choice(np.arange(1, num_items + 1), size=count, replace=False)
        ranks[random.random(count) < 0.2] = 0
        users.append(ranks.tolist())
    return [*users, [0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_brute_force(seed):
    users = random_ranks(seed)
    columns = values_of(*packed(users), KS)
    assert list(columns) == [*(f"{name}@{k}" for k in KS for name in ALL_AT_K), "mrr"]
    for k in KS:
        expected = np.asarray([brute_force(ranks, k) for ranks in users])
        for place, name in enumerate((*(f"{name}@{k}" for name in AT_K), "mrr")):
            np.testing.assert_allclose(columns[name], expected[:, place], rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_torchmetrics_on_the_same_predictions(seed):
    random = np.random.default_rng(seed)
    num_users, num_items = 30, 25
    scores = random.permuted(np.tile(np.arange(num_items), (num_users, 1)), axis=1)
    relevant = np.zeros((num_users, num_items), dtype=bool)
    for user in range(num_users):
        relevant[user, random.choice(num_items, size=random.integers(1, 5), replace=False)] = True
    users = [(num_items - scores[user, relevant[user]]).tolist() for user in range(num_users)]
    ours = mean_values(values_of(*packed(users), KS))
    arguments = (
        torch.from_numpy(scores.reshape(-1).astype(np.float32)),
        torch.from_numpy(relevant.reshape(-1)),
        torch.arange(num_users).repeat_interleave(num_items),
    )
    for k in KS:
        assert ours[f"hr@{k}"] == pytest.approx(RetrievalHitRate(top_k=k)(*arguments[:2], indexes=arguments[2]).item())
        theirs = RetrievalNormalizedDCG(top_k=k)(*arguments[:2], indexes=arguments[2]).item()
        assert ours[f"ndcg@{k}"] == pytest.approx(theirs, rel=1e-5)
        recall = RetrievalRecall(top_k=k)(*arguments[:2], indexes=arguments[2]).item()
        assert ours[f"recall@{k}"] == pytest.approx(recall, rel=1e-5)
        precision = RetrievalPrecision(top_k=k)(*arguments[:2], indexes=arguments[2]).item()
        assert ours[f"precision@{k}"] == pytest.approx(precision, rel=1e-5)
    # Cut off at K torchmetrics divides by the relevant items in the top K; over the whole list the definitions agree.
    whole = mean_values(values_of(*packed(users), [num_items]))[f"map@{num_items}"]
    assert whole == pytest.approx(RetrievalMAP()(*arguments[:2], indexes=arguments[2]).item(), rel=1e-5)
    assert ours["mrr"] == pytest.approx(RetrievalMRR()(*arguments[:2], indexes=arguments[2]).item(), rel=1e-5)


def test_by_hand():
    columns = values_of(*packed([[1], [3], [0], [2, 0]]), [2])
    assert columns["hr@2"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert columns["mrr"].tolist() == [1.0, 1 / 3, 0.0, 0.5]
    assert columns["recall@2"].tolist() == [1.0, 0.0, 0.0, 0.5]
    assert columns["map@2"].tolist() == [1.0, 0.0, 0.0, 0.25]
    second = 1 / math.log2(3)
    assert columns["ndcg@2"].tolist() == pytest.approx([1.0, 0.0, 0.0, second / (1.0 + second)])


def test_a_target_that_cannot_be_ranked_counts_as_missed_not_as_absent():
    columns = values_of(*packed([[1, 0]]), [10])
    assert columns["ndcg@10"][0] == pytest.approx(1.0 / (1.0 + 1 / math.log2(3)))


def test_the_order_of_a_users_targets_does_not_matter():
    first, second = (
        values_of(np.asarray(items), np.asarray(ranks), np.asarray([0, 3]), KS)
        for items, ranks in (([1, 2, 3], [5, 0, 2]), ([3, 1, 2], [2, 5, 0]))
    )
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-15)


def test_cut_offs_are_sorted_and_counted_once():
    assert list(values_of(*packed([[1]]), [10, 5, 10])) == [
        *(f"{name}@{k}" for k in (5, 10) for name in ALL_AT_K),
        "mrr",
    ]


def test_precision_is_that_of_the_list_down_to_each_hit():
    """Three relevant items at places 1, 3 and 6: precisions 1/1, 2/3 and 3/6."""
    columns = values_of(*packed([[6, 1, 3]]), [1, 3, 5, 6])
    assert columns["map@1"][0] == pytest.approx(1 / 3)
    assert columns["map@3"][0] == columns["map@5"][0] == pytest.approx((1 + 2 / 3) / 3)
    assert columns["map@6"][0] == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert columns["recall@1"][0] == pytest.approx(1 / 3), "of three relevant items one fits into a list of one"
    assert columns["recall@5"][0] == pytest.approx(2 / 3)


def test_with_one_target_recall_is_the_hit_rate_and_map_the_reciprocal_rank():
    columns = values_of(*packed([[1], [4], [11], [0]]), [10])
    assert columns["recall@10"].tolist() == columns["hr@10"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert columns["map@10"].tolist() == [1.0, 0.25, 0.0, 0.0]


def test_precision_divides_by_the_length_of_the_list():
    columns = values_of(*packed([[1, 4, 0], [2]]), [1, 5])
    assert columns["precision@1"].tolist() == [1.0, 0.0]
    assert columns["precision@5"].tolist() == [2 / 5, 1 / 5]


def debiased_brute_force(users: list[list[tuple[int, int]]], events: np.ndarray, k: int) -> float:
    """Return debiased_ndcg@k of users with (item, rank) of each relevant item, with every order of an ideal list tried."""
    above = below = 0.0
    for items in users:
        weight = {item: 1 / math.sqrt(max(1, events[item - 1] if item else 0)) for item, _ in items}
        gain = sum(weight[item] / math.log2(rank + 1) for item, rank in items if 0 < rank <= k)
        orders = itertools.permutations([weight[item] for item, _ in items])
        ideal = max(sum(w / math.log2(place + 1) for place, w in enumerate(order[:k], start=1)) for order in orders)
        of_user = sum(weight[item] for item, _ in items) / len(items)
        above, below = above + of_user * gain / ideal, below + of_user
    return above / below


@pytest.mark.parametrize("seed", range(3))
def test_debiased_ndcg_equals_brute_force(seed):
    users, events = random_ranks(seed), np.random.default_rng(seed).integers(0, 50, 5000)
    targets, ranks, offsets = packed(users)
    targets[::7] = 0  # items that the training part does not know
    ranks[::7] = 0
    pairs = list(zip(targets.tolist(), ranks.tolist(), strict=True))
    by_user = [pairs[start:stop] for start, stop in itertools.pairwise(offsets.tolist())]
    # Unknown items of a user share id 0, so that the dictionary of weights by item is right for them, too.
    actual = means(user_metrics(targets, ranks, offsets, KS, events))
    for k in KS:
        assert actual[f"debiased_ndcg@{k}"] == pytest.approx(debiased_brute_force(by_user, events, k), rel=1e-12)


def test_where_items_are_equally_popular_debiased_ndcg_is_ndcg():
    columns = user_metrics(*packed(random_ranks(4)), KS, np.full(5000, 7))
    for k in KS:
        assert columns[f"debiased_ndcg@{k}"].mean == pytest.approx(columns[f"ndcg@{k}"].mean, rel=1e-12)


def test_a_hit_of_a_rare_item_counts_more():
    events = np.asarray([100, 4])
    columns = user_metrics(np.asarray([1, 2]), np.asarray([1, 0]), np.asarray([0, 1, 2]), [5], events)
    assert columns["debiased_ndcg@5"].mean == pytest.approx((1 / 10) / (1 / 10 + 1 / 2))
    assert columns["ndcg@5"].mean == 0.5


def test_no_users():
    columns = user_metrics(*packed([]), [10], EVENTS)
    names = [*(f"{name}@10" for name in ALL_AT_K), "mrr"]
    assert {name: values.size for name, values in columns.items()} == dict.fromkeys(names, 0)
    assert means(columns) == dict.fromkeys(names, 0.0)
    assert intervals(columns)["mrr"] == [0.0, 0.0]


def test_intervals_are_two_standard_errors_wide():
    values = np.tile([0.0, 1.0, 1.0, 0.0, 1.0], 2000)
    low, high = intervals({"hr@1": UserValues(values, SHARE)})["hr@1"]
    error = math.sqrt(sum((v - 0.6) ** 2 for v in values) / 9_999 / 10_000)
    assert low == pytest.approx(0.6 - 1.959964 * error, abs=1e-4)
    assert high == pytest.approx(0.6 + 1.959964 * error, abs=1e-4)


def test_intervals_cover_the_truth_about_95_times_in_100():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        low, high = intervals({"hr@1": UserValues((random.random(400) < 0.3).astype(np.float64), SHARE)})["hr@1"]
        covered += low <= 0.3 <= high
    assert 930 <= covered <= 970
