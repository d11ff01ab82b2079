"""Metrics of next-item models, as one tuple: per user from the ranks of the user's targets, and per catalogue from all lists.

The relevant items of a user are the distinct ones among the held-out events: an item that repeats counts once, because it has
one place in a ranked list. An item that cannot be ranked is relevant and counts as missed. With r_1 < r_2 < ... the ranks (from 1)
of the n_u relevant items of user u over the full catalogue:

hr@K      1 if r_1 <= K (hit rate)
ndcg@K    sum over r_j <= K of 1 / log2(r_j + 1), over the same sum for ranks 1 .. min(K, n_u) (Jarvelin & Kekalainen 2002)
recall@K  the number of r_j <= K, over n_u
map@K     sum over r_j <= K of the precision j / r_j, over n_u (average precision, cut off at K: Manning, Raghavan & Schutze 2008,
          section 8.4; as trec_eval and RecTools divide it)
mrr       1 / r_1, 0 if no item can be ranked

Each is a mean over users. coverage@K is the share of the catalogue that is in the top K of some user. All lie in [0, 1], for any
targets. Pure numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trainer.evaluation.confidence import SHARE, mean_interval
from trainer.evaluation.metric import Metric


@dataclass(frozen=True)
class RelevantItems:
    """The ranks of the relevant items of U users."""

    users: np.ndarray
    """(R,) the user's number for each relevant item, ascending."""
    ranks: np.ndarray
    """(R,) float64 from 1, ascending per user; infinity where an item cannot be ranked."""
    num_users: int
    """U; every user has at least one relevant item."""

    @cached_property
    def counts(self) -> np.ndarray:
        """(U,) the number of relevant items of each user."""
        return np.bincount(self.users, minlength=self.num_users)

    @cached_property
    def best_ranks(self) -> np.ndarray:
        """(U,) the smallest rank of each user."""
        best = np.full(self.num_users, np.inf)
        np.minimum.at(best, self.users, self.ranks)
        return best

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of a value (R,) per relevant item over each user's items, (U,) float64."""
        return np.bincount(self.users, values, self.num_users)


@dataclass(frozen=True, kw_only=True)
class NextItemMetric(Metric):
    """A metric of next-item models. Exactly one of the functions is set."""

    of_users: Callable[[RelevantItems, float], np.ndarray] | None = None
    """From relevant items and K (infinity without a cut-off) to a value per user, (U,) float64; the metric is their mean."""
    of_lists: Callable[[np.ndarray, int, int], float] | None = None
    """From the top items of all users (U, k >= K) with 0 for an empty place, K and the number of items to the metric."""


def hit_rate(items: RelevantItems, k: float) -> np.ndarray:
    """Return 1 for each user with a relevant item in the top K, else 0."""
    return (items.best_ranks <= k).astype(np.float64)


def ndcg(items: RelevantItems, k: float) -> np.ndarray:
    """Return the discounted gain of each user's top K over that of an ideal list."""
    gains = 1.0 / np.log2(items.ranks + 1.0)
    ideal = np.concatenate(([0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))))
    # Both sums add the larger gains first, one by one. So the rounded sum of a list never exceeds the rounded ideal.
    summed = items.sums(np.where(items.ranks <= k, gains, 0.0))
    share: np.ndarray = summed / ideal[np.minimum(items.counts, int(k))]
    return share


def recall(items: RelevantItems, k: float) -> np.ndarray:
    """Return the share of each user's relevant items that are in the top K."""
    share: np.ndarray = items.sums(items.ranks <= k) / items.counts
    return share


def average_precision(items: RelevantItems, k: float) -> np.ndarray:
    """Return the mean over each user's relevant items of the precision at its rank, 0 beyond the top K."""
    first = np.cumsum(items.counts) - items.counts
    number = np.arange(1, items.users.size + 1) - first[items.users]  # j: the item is the user's j-th from the top
    mean: np.ndarray = items.sums(np.where(items.ranks <= k, number / items.ranks, 0.0)) / items.counts
    return mean


def reciprocal_rank(items: RelevantItems, k: float) -> np.ndarray:
    """Return 1 / the smallest rank of each user, 0 if it is beyond the top K."""
    return np.where(items.best_ranks <= k, 1.0 / items.best_ranks, 0.0)


def coverage(top_items: np.ndarray, k: int, num_items: int) -> float:
    """Return the share of the catalogue that is in the top K of some user."""
    ids = np.unique(top_items[:, :k])
    return float((ids > 0).sum() / num_items)


METRICS: tuple[NextItemMetric, ...] = (
    NextItemMetric(
        name="hr",
        of_users=hit_rate,
        explanation="Hit rate: share of users with at least one held-out item among their top K.",
        larger_is_better=True,
        within=SHARE,
        has_cutoff=True,
        headline=True,
    ),
    NextItemMetric(
        name="ndcg",
        of_users=ndcg,
        explanation="Normalised discounted cumulative gain: a held-out item counts the more, the nearer it is to the top.",
        larger_is_better=True,
        within=SHARE,
        has_cutoff=True,
        headline=True,
    ),
    NextItemMetric(
        name="recall",
        of_users=recall,
        explanation="Share of a user's held-out items that are among the top K. With one held-out item per user it equals hr@K.",
        larger_is_better=True,
        within=SHARE,
        has_cutoff=True,
    ),
    NextItemMetric(
        name="map",
        of_users=average_precision,
        explanation="Mean average precision: the precision at the rank of each held-out item in the top K, averaged over all "
        "held-out items of a user.",
        larger_is_better=True,
        within=SHARE,
        has_cutoff=True,
    ),
    NextItemMetric(
        name="mrr",
        of_users=reciprocal_rank,
        explanation="Mean reciprocal rank: 1 / the rank of the user's first held-out item in the full catalogue.",
        larger_is_better=True,
        within=SHARE,
        headline=True,
    ),
    NextItemMetric(
        name="coverage",
        of_lists=coverage,
        explanation="Share of the catalogue that is recommended to at least one user in the top K. It has no interval, because it "
        "is not a mean over users.",
        larger_is_better=True,
        within=SHARE,
        has_cutoff=True,
        selects=False,
    ),
)


def user_metrics(
    targets: np.ndarray, target_ranks: np.ndarray, offsets: np.ndarray, ks: list[int]
) -> dict[str, np.ndarray]:
    """Return the metrics of each user by name, (U,) float64 each: those of each cut-off, then those without.

    Args:
        targets: (T,) packed ids of the held-out items; 0 is an unknown item. An id may repeat within a user.
        target_ranks: (T,) packed, from 1; 0 where a target cannot be ranked.
        offsets: (U + 1,). Every user has at least one target.
        ks: the cut-offs.
    """
    items = relevant_items(targets, target_ranks, offsets)
    wanted: list[tuple[NextItemMetric, int | None]] = [(m, k) for k in sorted(set(ks)) for m in METRICS if m.has_cutoff]
    wanted += [(metric, None) for metric in METRICS if not metric.has_cutoff]
    return {
        metric.value_name(k): metric.of_users(items, np.inf if k is None else k)
        for metric, k in wanted
        if metric.of_users is not None
    }


def list_metrics(top_items: np.ndarray, ks: list[int], num_items: int) -> dict[str, float]:
    """Return the metrics of all users' lists by name.

    Args:
        top_items: (U, max(ks)) ids, the best first; 0 where fewer items are left.
        ks: the cut-offs.
        num_items: the size of the catalogue.
    """
    return {
        metric.value_name(k): metric.of_lists(top_items, k, num_items)
        for metric in METRICS
        if metric.of_lists is not None
        for k in sorted(set(ks))
    }


def relevant_items(targets: np.ndarray, target_ranks: np.ndarray, offsets: np.ndarray) -> RelevantItems:
    """Return the distinct targets of each user, by ascending rank. Arguments as of user_metrics."""
    users = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    by_item = np.lexsort((targets, users))
    users, items, ranks = users[by_item], targets[by_item], target_ranks[by_item]
    first = np.ones(items.size, dtype=np.bool_)
    # Unknown items share id 0 and cannot be distinguished: each counts as an item of its own.
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1]) | (items[1:] == 0)
    users, ranked = users[first], np.where(ranks > 0, ranks, np.inf)[first]
    by_rank = np.lexsort((ranked, users))
    return RelevantItems(users[by_rank], ranked[by_rank], offsets.size - 1)


def means(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of each metric over users; 0 without users."""
    return {name: float(values.mean()) if values.size else 0.0 for name, values in columns.items()}


def intervals(columns: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Return 95 % confidence intervals of the means over users, within [0, 1]; [0, 0] without users, as the mean is 0."""
    return {name: list(mean_interval(values, SHARE)) if values.size else [0.0, 0.0] for name, values in columns.items()}
