"""Metrics of recommended lists: equal to brute force and to RecTools, in their ranges, with similarities of items."""

import itertools
import math

import numpy as np
import pytest

from trainer.evaluation.confidence import NOT_NEGATIVE, SHARE
from trainer.evaluation.next_item.figures import figures_of
from trainer.evaluation.next_item.list_metrics import RankedLists
from trainer.evaluation.next_item.metrics import METRICS, catalogue_metrics, list_metrics
from trainer.evaluation.next_item.similarity import Similarity, similarity_of_categories, similarity_of_users

KS = [1, 2, 5]


def random_lists(seed: int, num_users: int = 12, num_items: int = 9, k: int = 5) -> np.ndarray:
    """Return lists of different items, (num_users, k); some end early, and one is empty."""
    random = np.random.default_rng(seed)
    lists = np.stack([random.permutation(num_items)[:k] + 1 for _ in range(num_users)])
    lists[np.arange(k) >= random.integers(1, 2 * k, num_users)[:, None]] = 0
    lists[num_users // 2] = 0
    return lists


def random_categories(seed: int, num_items: int = 9) -> list[set[tuple[int, int]]]:
    """Return the categories of items, as (feature, value); some items have none."""
    random = np.random.default_rng(seed)
    return [
        {(feature, int(value)) for feature in range(2) for value in random.integers(0, 3, random.integers(0, 3))}
        for _ in range(num_items)
    ]


def similarity_of(categories: list[set[tuple[int, int]]]) -> Similarity:
    features = []
    for feature in range(2):
        pairs = [(item, v) for item, own in enumerate(categories, start=1) for f, v in own if f == feature] * 2
        features.append((np.asarray([item for item, _ in pairs], int), np.asarray([v for _, v in pairs], int)))
    return similarity_of_categories(features, len(categories) + 1)


def brute_force(top: list[int], events: np.ndarray, categories: list[set[tuple[int, int]]]) -> dict[str, float]:
    """Return the metrics of one list, item by item and pair by pair; those without a value are missing."""
    items = [item for item in top if item]
    values = {}
    if items:
        values["novelty"] = sum(-math.log2(max(1, events[i - 1]) / events.sum()) for i in items) / len(items)
        values["arp"] = sum(events[i - 1] for i in items) / len(items)
    distances = []
    for first, second in itertools.combinations(items, 2):
        a, b = categories[first - 1], categories[second - 1]
        distances.append(1 - (len(a & b) / math.sqrt(len(a) * len(b)) if a and b else 0.0))
    if distances:
        values["ild"] = sum(distances) / len(distances)
    return values


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_lists_equal_brute_force(seed):
    top, events = random_lists(seed), np.random.default_rng(seed).integers(0, 30, 9)
    categories = random_categories(seed)
    columns = list_metrics(RankedLists(top, events, similarity_of(categories)), KS)
    assert set(columns) == {f"{name}@{k}" for name in ("novelty", "arp") for k in KS} | {"ild@2", "ild@5"}
    for k in KS:
        of_users = [brute_force(user[:k].tolist(), events, categories) for user in top]
        for name in ("novelty", "arp", "ild"):
            expected = [values[name] for values in of_users if name in values]
            if f"{name}@{k}" in columns:
                column = columns[f"{name}@{k}"]
                assert column.mean == pytest.approx(np.mean(expected), rel=1e-12)
                assert column.shares.mean() == pytest.approx(np.mean(expected), rel=1e-12)
                assert column.sums[1] == len(expected)
    covered = catalogue_metrics(RankedLists(top, events, None), KS)
    for k in KS:
        assert covered[f"coverage@{k}"].value == len(set(top[:, :k].flatten().tolist()) - {0}) / 9


@pytest.mark.parametrize("seed", range(40))
def test_every_metric_of_lists_is_in_its_range_and_in_its_interval(seed):
    random = np.random.default_rng(seed)
    num_users, num_items = int(random.integers(1, 8)), int(random.integers(5, 9))
    top = random_lists(seed, num_users, num_items)
    histories = random.integers(0, num_items + 1, 30), np.asarray([0, 4, 4, 11, 30])
    for similarity in (
        similarity_of(random_categories(seed, num_items)),
        similarity_of_users([histories], num_items + 1),
        None,
    ):
        events = random.integers(0, 3, num_items) if seed % 3 else np.zeros(num_items, np.int64)
        lists = RankedLists(top, events, similarity)
        targets = random.integers(0, num_items + 1, num_users)
        figures = figures_of(targets, targets, np.arange(num_users + 1), lists, KS)
        for name, value in figures.metrics.items():
            within = next(metric.within for metric in METRICS if metric.matches(name))
            low, high = figures.ci95[name]
            assert within in (SHARE, NOT_NEGATIVE)
            assert within.low <= low <= value <= high <= within.high, name
            assert name.partition("@")[0] != "novelty" or value <= math.log2(max(1, events.sum()))
        for name, column in figures.columns.items():
            counted = column.values[column.weights > 0] if column.weights is not None else column.values
            assert counted.size == 0 or (counted.min() >= column.within.low and counted.max() <= column.within.high), (
                name
            )


def test_lists_without_any_item_have_no_diversity_and_no_coverage():
    lists = RankedLists(np.zeros((3, 5), np.int64), np.ones(9, np.int64), similarity_of(random_categories(0)))
    figures = figures_of(np.ones(3, np.int64), np.zeros(3, np.int64), np.arange(4), lists, KS)
    for name in ("coverage@5", "novelty@5", "ild@5", "arp@5"):
        assert figures.metrics[name] == 0.0
        assert figures.ci95[name] == [0.0, 0.0]


def test_where_every_item_has_one_category_distances_are_0_or_1():
    similarity = similarity_of_categories([(np.arange(1, 5), np.asarray([7, 7, 7, 8]))], 5)
    lists = RankedLists(np.asarray([[1, 2, 3], [1, 2, 4]]), np.ones(4, np.int64), similarity)
    columns = list_metrics(lists, [2, 3])
    assert columns["ild@2"].values.tolist() == [0.0, 0.0]
    assert columns["ild@3"].values == pytest.approx([0.0, 2 / 3])


def test_similarity_by_users_estimates_the_cosine_of_their_sets():
    """Items of three groups of users: lists within a group are similar, lists across groups are not."""
    random = np.random.default_rng(1)
    histories = [
        np.unique(random.integers(1, 11, 8) + 10 * (user % 3)).tolist() * 2  # items that repeat count once
        for user in range(600)
    ]
    blocks = []
    for part in (histories[:250], histories[250:]):
        offsets = np.concatenate(([0], np.cumsum([len(own) for own in part])))
        blocks.append((np.asarray([item for own in part for item in own]), offsets))
    similarity = similarity_of_users(blocks, 42)
    users_of = {item: {user for user, own in enumerate(histories) if item in own} for item in range(1, 42)}
    tops = np.asarray([[1, 2, 3, 4, 5, 6], [1, 11, 21, 2, 12, 22], [31, 32, 33, 34, 35, 36]])
    for top, total in zip(tops, similarity.sums(tops), strict=True):
        cosines = [
            len(users_of[a] & users_of[b]) / math.sqrt(max(1, len(users_of[a]) * len(users_of[b])))
            for a, b in itertools.permutations(top.tolist(), 2)
        ]
        assert total / 30 == pytest.approx(np.mean(cosines), abs=0.06)
    assert np.square(similarity.vectors[1:]).sum(axis=1) == pytest.approx(1.0)


def test_blocks_of_lists_change_nothing(monkeypatch):
    top, categories = random_lists(3, num_users=40), random_categories(3)
    vectors = similarity_of_users([(np.arange(1, 10), np.asarray([0, 3, 7, 9]))], 10)
    for similarity in (similarity_of(categories), vectors):
        whole = similarity.sums(top)
        with monkeypatch.context() as patch:
            patch.setattr("trainer.evaluation.next_item.similarity._BLOCK", 7)
            assert similarity.sums(top).tolist() == whole.tolist()
    assert similarity.sums(top[:0]).tolist() == []


@pytest.mark.parametrize("seed", range(2))
def test_metrics_of_lists_equal_those_of_rectools(seed):
    theirs = pytest.importorskip(
        "rectools.metrics", reason="RecTools needs older libraries than Shoal; install it to compare"
    )
    pandas = pytest.importorskip("pandas")
    random = np.random.default_rng(seed)
    num_users, num_items = 40, 15
    pairs = [(user, item) for user in range(num_users) for item in random.permutation(num_items)[:4] + 1]
    log = pandas.DataFrame(pairs, columns=["user_id", "item_id"])
    events = np.bincount(log["item_id"], minlength=num_items + 1)[1:]
    top = np.stack([random.permutation(num_items)[:5] + 1 for _ in range(num_users)])
    reco = pandas.DataFrame(
        [(u, item, rank) for u in range(num_users) for rank, item in enumerate(top[u].tolist(), start=1)],
        columns=["user_id", "item_id", "rank"],
    )
    category = random.integers(0, 3, num_items)
    features = pandas.DataFrame({"one": category}, index=pandas.Index(np.arange(1, num_items + 1), name="item_id"))
    distance = theirs.distances.PairwiseHammingDistanceCalculator(features)
    similarity = similarity_of_categories([(np.arange(1, num_items + 1), category)], num_items + 1)
    columns = list_metrics(RankedLists(top, events, similarity), KS)
    targets = random.integers(1, num_items + 1, num_users)
    held_out = pandas.DataFrame({"user_id": np.arange(num_users), "item_id": targets})
    place = np.argmax(np.where(top == targets[:, None], 1, 0), axis=1) + 1
    ranks = np.where((top == targets[:, None]).any(axis=1), place, 100)
    figures = figures_of(targets, ranks, np.arange(num_users + 1), RankedLists(top, events, None), KS).metrics
    for k in KS:
        # They divide by the number of users, and here by that of events.
        bits = math.log2(events.sum() / num_users)
        assert columns[f"novelty@{k}"].mean - bits == pytest.approx(theirs.MeanInvUserFreq(k=k).calc(reco, log))
        assert columns[f"arp@{k}"].mean == pytest.approx(theirs.AvgRecPopularity(k=k).calc(reco, log))
        if k > 1:
            diversity = theirs.IntraListDiversity(k=k, distance_calculator=distance).calc(reco)
            assert columns[f"ild@{k}"].mean == pytest.approx(diversity)
        for name, metric in (
            ("hr", theirs.HitRate),
            ("recall", theirs.Recall),
            ("precision", theirs.Precision),
            ("map", theirs.MAP),
        ):
            assert figures[f"{name}@{k}"] == pytest.approx(metric(k=k).calc(reco, held_out)), name
        catalogue = np.arange(1, num_items + 1)
        assert figures[f"coverage@{k}"] == pytest.approx(
            theirs.CatalogCoverage(k=k, normalize=True).calc(reco, catalogue)
        )
