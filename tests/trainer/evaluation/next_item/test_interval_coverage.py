"""Intervals of every metric hold its true value in 93 to 97 of 100 samples of users, whether it is a mean over users or not."""

from dataclasses import dataclass

import numpy as np
import pytest

from trainer.evaluation.next_item.figures import Figures, figures_of
from trainer.evaluation.next_item.list_metrics import RankedLists
from trainer.evaluation.next_item.metrics import METRICS
from trainer.evaluation.next_item.similarity import Similarity, similarity_of_categories

KS = [2, 10]
DRAWS = 1000


@dataclass(frozen=True)
class Population:
    """Many users, of which samples are drawn with replacement, so that the truth is known exactly."""

    targets: np.ndarray
    """(P, n) held-out items of each user; the first num_targets count."""
    ranks: np.ndarray
    """(P, n)."""
    num_targets: np.ndarray
    """(P,)."""
    top: np.ndarray
    """(P, K) lists."""
    train_events: np.ndarray
    similarity: Similarity

    def figures(self, users: np.ndarray) -> Figures:
        counted = np.arange(self.targets.shape[1]) < self.num_targets[users, None]
        offsets = np.concatenate(([0], np.cumsum(self.num_targets[users])))
        lists = RankedLists(self.top[users], self.train_events, self.similarity)
        return figures_of(self.targets[users][counted], self.ranks[users][counted], offsets, lists, KS)

    def truth(self, num_users: int) -> dict[str, float]:
        """Return each metric of the whole population, and the mean coverage of samples of `num_users`."""
        values = self.figures(np.arange(self.top.shape[0])).metrics
        for k in KS:
            chance = (
                np.bincount(self.top[:, :k].reshape(-1), minlength=self.train_events.size + 1)[1:] / self.top.shape[0]
            )
            values[f"coverage@{k}"] = float((1 - (1 - chance) ** num_users).mean())
        return values


def population(num_items: int, zipf: float, most_targets: int, num_groups: int, size: int = 10_000) -> Population:
    """Return users of groups with tastes of their own, who are recommended and choose popular items more often."""
    random = np.random.default_rng(17)
    popularity = 1 / np.arange(1, num_items + 1) ** zipf
    events = (20 * num_items * popularity / popularity.sum()).astype(np.int64)
    category = random.integers(0, 6, num_items)
    taste = np.log(popularity) * 0.7 + random.normal(size=(num_groups, 6))[:, category]
    group = random.integers(0, num_groups, size)
    top = np.empty((size, max(KS)), np.int64)
    for start in range(0, size, 1000):
        scores = taste[group[start : start + 1000]] + random.gumbel(size=(1000, num_items))
        top[start : start + 1000] = np.argsort(-scores, axis=1)[:, : max(KS)] + 1
    chance = (events + 0.3) / (events + 0.3).sum()
    targets = random.choice(num_items, size=(size, most_targets), p=chance) + 1
    ranks = np.ceil(targets * random.exponential(size=targets.shape)).astype(
        np.int64
    )  # popular items are ranked better
    ranks[random.random(ranks.shape) < 0.1] = 0
    similarity = similarity_of_categories([(np.arange(1, num_items + 1), category)], num_items + 1)
    return Population(targets, ranks, random.integers(1, most_targets + 1, size), top, events, similarity)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_items", "zipf", "most_targets", "num_groups", "num_users"),
    [(500, 1.0, 1, 6, 400), (1000, 1.0, 5, 30, 400)],
    ids=["one target per user", "several targets per user"],
)
def test_intervals_hold_the_truth_95_times_in_100(num_items, zipf, most_targets, num_groups, num_users):
    users = population(num_items, zipf, most_targets, num_groups)
    truth, random = users.truth(num_users), np.random.default_rng(23)
    held = dict.fromkeys(truth, 0)
    for _ in range(DRAWS):
        figures = users.figures(random.integers(0, users.top.shape[0], num_users))
        for name, (low, high) in figures.ci95.items():
            held[name] += low <= truth[name] <= high
    assert {name.partition("@")[0] for name in held} == {metric.name for metric in METRICS}
    shares = {name: count / DRAWS for name, count in held.items()}
    assert {name: share for name, share in shares.items() if not 0.93 <= share <= 0.97} == {}
