"""Metrics of next-item models, as one tuple: from the ranks of each user's targets, and from the recommended lists.

The relevant items of a user are the distinct ones among the held-out events: an item that repeats counts once, because it has
one place in a ranked list. An item that cannot be ranked is relevant and counts as missed. With r_1 < r_2 < ... the ranks (from 1)
of the n_u relevant items of user u over the full catalogue:

hr@K         1 if r_1 <= K (hit rate)
ndcg@K       sum over r_j <= K of 1 / log2(r_j + 1), over the same sum for ranks 1 .. min(K, n_u) (Jarvelin & Kekalainen 2002)
recall@K     the number of r_j <= K, over n_u
precision@K  the number of r_j <= K, over K
map@K        sum over r_j <= K of the precision j / r_j, over n_u (average precision, cut off at K: Manning, Raghavan & Schutze
             2008, section 8.4; as trec_eval and RecTools divide it)
mrr          1 / r_1, 0 if no item can be ranked

Each is a mean over users and is in [0, 1], for any targets.

debiased_ndcg@K corrects ndcg@K for the fact that popular items are observed more often. An item with n_i training events is
observed with a propensity proportional to p_i = sqrt(max(1, n_i)) (Saito et al. 2020, arXiv 1909.03601). Each relevant
item has the weight 1 / p_i (Schnabel et al. 2016, arXiv 1602.05352):

    v_u = sum over r_j <= K of 1 / (p_j log2(r_j + 1)), over its largest value for the user's items, in any order
    debiased_ndcg@K = sum w_u v_u / sum w_u, with w_u the mean of 1 / p_j over the user's items

It is self-normalised (Swaminathan & Joachims 2015; Yang et al. 2018, doi 10.1145/3240323.3240355): only ratios of propensities
matter, and the metric is in [0, 1]. Yang et al. normalise within each user. Here all users are normalised together, since with one
target per user the weights would cancel. If all items have the same number of training events, the metric equals ndcg@K.

list_metrics.py defines the metrics of lists: coverage, novelty, ild and arp. Pure numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trainer.evaluation.confidence import NOT_NEGATIVE, SHARE
from trainer.evaluation.metric import Metric
from trainer.evaluation.next_item.list_metrics import (
    CatalogueValue,
    RankedLists,
    coverage,
    diversity,
    novelty,
    recommendation_popularity,
)
from trainer.evaluation.next_item.user_values import UserValues


@dataclass(frozen=True)
class RelevantItems:
    """The ranks of the relevant items of U users."""

    users: np.ndarray
    """(R,) the user's number for each relevant item, ascending."""
    ranks: np.ndarray
    """(R,) float64 from 1, ascending per user; infinity where an item cannot be ranked."""
    num_users: int
    """U; every user has at least one relevant item."""
    inverse_propensities: np.ndarray
    """(R,) float64: the weight of each relevant item in debiased metrics."""

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

    @cached_property
    def numbers(self) -> np.ndarray:
        """(R,) the number of each relevant item within its user, from 1."""
        first = np.cumsum(self.counts) - self.counts
        number: np.ndarray = np.arange(1, self.users.size + 1) - first[self.users]
        return number

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of a value (R,) per relevant item over each user's items, (U,) float64."""
        return np.bincount(self.users, values, self.num_users)


@dataclass(frozen=True, kw_only=True)
class NextItemMetric(Metric):
    """A metric of next-item models. Exactly one of of_users, of_lists and of_catalogue is set."""

    of_users: Callable[[RelevantItems, float], np.ndarray] | None = None
    """From relevant items and K (infinity without a cut-off) to a value per user, (U,) float64; the metric is their mean."""
    user_weights: Callable[[RelevantItems], np.ndarray] | None = None
    """From relevant items to the weight of each user in the mean, (U,) float64; None if all users count equally."""
    of_lists: Callable[[RankedLists, int], np.ndarray] | None = None
    """From recommended lists and K to a value per user, (U,) float64, NaN where there is none; the metric is their mean."""
    of_catalogue: Callable[[RankedLists, int], CatalogueValue] | None = None
    """From recommended lists and K to the metric of all lists together."""
    smallest_k: int = 1
    """The smallest cut-off at which the metric has a value."""
    needs_similarity: bool = False
    """True if the metric needs the similarity of items."""

    @property
    def weighs_users(self) -> bool:
        """True if users may count differently, so that per_user.parquet holds shares in the metric (UserValues.shares)."""
        return self.user_weights is not None or self.of_lists is not None


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
    # Ranks ascend within a user, so the user's item number j is the j-th from the top.
    mean: np.ndarray = items.sums(np.where(items.ranks <= k, items.numbers / items.ranks, 0.0)) / items.counts
    return mean


def reciprocal_rank(items: RelevantItems, k: float) -> np.ndarray:
    """Return 1 / the smallest rank of each user, 0 if it is beyond the top K."""
    return np.where(items.best_ranks <= k, 1.0 / items.best_ranks, 0.0)


def precision(items: RelevantItems, k: float) -> np.ndarray:
    """Return the share of the top K places that have a relevant item of the user."""
    share: np.ndarray = items.sums(items.ranks <= k) / k
    return share


def debiased_ndcg(items: RelevantItems, k: float) -> np.ndarray:
    """Return the discounted gain of each user's top K with gains of inverse propensities, over that of an ideal list."""
    weights = items.inverse_propensities
    gains = items.sums(np.where(items.ranks <= k, weights / np.log2(items.ranks + 1.0), 0.0))
    # The ideal list has the items of the largest weights first.
    order = np.lexsort((-weights, items.users))
    ideal = items.sums(np.where(items.numbers <= k, weights[order] / np.log2(items.numbers + 1.0), 0.0))
    # Both sums add their terms in different orders, so rounding may push the share beyond 1.
    share: np.ndarray = np.minimum(gains / ideal, 1.0)
    return share


def mean_inverse_propensity(items: RelevantItems) -> np.ndarray:
    """Return the mean inverse propensity of each user's relevant items."""
    mean: np.ndarray = items.sums(items.inverse_propensities) / items.counts
    return mean


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
        name="precision",
        of_users=precision,
        explanation="Share of the top K that are held-out items of the user. With n held-out items it is at most n / K.",
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
        name="debiased_ndcg",
        of_users=debiased_ndcg,
        user_weights=mean_inverse_propensity,
        explanation="The ndcg@K with held-out items weighted by 1 / sqrt(training events), because popular items are held out more "
        "often than users prefer them.",
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
        of_catalogue=coverage,
        explanation="Share of the catalogue that is recommended to at least one user in the top K. It grows with the number of "
        "users; the interval is about samples of as many users.",
        larger_is_better=True,
        within=SHARE,
        has_cutoff=True,
        selects=False,
    ),
    NextItemMetric(
        name="novelty",
        of_lists=novelty,
        explanation="Mean self-information of the top K in bits: one more for items with half as many training events.",
        larger_is_better=True,
        within=NOT_NEGATIVE,
        has_cutoff=True,
        selects=False,
    ),
    NextItemMetric(
        name="ild",
        of_lists=diversity,
        explanation="Intra-list diversity: mean distance of the pairs of items in the top K, from 0 (the same categories or "
        "users) to 1 (none in common).",
        larger_is_better=True,
        within=SHARE,
        has_cutoff=True,
        selects=False,
        smallest_k=2,
        needs_similarity=True,
    ),
    NextItemMetric(
        name="arp",
        of_lists=recommendation_popularity,
        explanation="Average recommendation popularity: mean number of training events of the items in the top K. A larger "
        "value is a stronger popularity bias.",
        larger_is_better=None,
        within=NOT_NEGATIVE,
        has_cutoff=True,
        selects=False,
    ),
)


def user_metrics(
    targets: np.ndarray, target_ranks: np.ndarray, offsets: np.ndarray, ks: list[int], train_events: np.ndarray
) -> dict[str, UserValues]:
    """Return the metrics of held-out items of each user by name: those of each cut-off, then those without.

    Args:
        targets: (T,) packed ids of the held-out items; 0 is an unknown item. An id may repeat within a user.
        target_ranks: (T,) packed, from 1; 0 where a target cannot be ranked.
        offsets: (U + 1,). Every user has at least one target.
        ks: the cut-offs.
        train_events: (num_items,) training events of each item, by id from 1 on.
    """
    items = relevant_items(targets, target_ranks, offsets, train_events)
    wanted: list[tuple[NextItemMetric, int | None]] = [(m, k) for k in sorted(set(ks)) for m in METRICS if m.has_cutoff]
    wanted += [(metric, None) for metric in METRICS if not metric.has_cutoff]
    return {
        metric.value_name(k): UserValues(
            metric.of_users(items, np.inf if k is None else k),
            metric.within,
            None if metric.user_weights is None else metric.user_weights(items),
        )
        for metric, k in wanted
        if metric.of_users is not None
    }


def list_metrics(lists: RankedLists, ks: list[int]) -> dict[str, UserValues]:
    """Return the metrics of each user's list by name. Lists have at least max(ks) places."""
    columns = {}
    for metric in METRICS:
        if metric.of_lists is not None and (lists.similarity is not None or not metric.needs_similarity):
            for k in sorted(set(ks)):
                if k >= metric.smallest_k:
                    values = metric.of_lists(lists, k)
                    known = np.isfinite(values)
                    weights = None if known.all() else known.astype(np.float64)
                    columns[metric.value_name(k)] = UserValues(np.where(known, values, 0.0), metric.within, weights)
    return columns


def catalogue_metrics(lists: RankedLists, ks: list[int]) -> dict[str, CatalogueValue]:
    """Return the metrics of all users' lists together by name. Lists have at least max(ks) places."""
    return {
        metric.value_name(k): metric.of_catalogue(lists, k)
        for metric in METRICS
        if metric.of_catalogue is not None
        for k in sorted(set(ks))
    }


def relevant_items(
    targets: np.ndarray, target_ranks: np.ndarray, offsets: np.ndarray, train_events: np.ndarray
) -> RelevantItems:
    """Return the distinct targets of each user, by ascending rank. Arguments as of user_metrics."""
    users = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    by_item = np.lexsort((targets, users))
    users, items, ranks = users[by_item], targets[by_item], target_ranks[by_item]
    first = np.ones(items.size, dtype=np.bool_)
    # Unknown items share id 0 and cannot be distinguished: each counts as an item of its own.
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1]) | (items[1:] == 0)
    users, items, ranked = users[first], items[first], np.where(ranks > 0, ranks, np.inf)[first]
    by_rank = np.lexsort((ranked, users))
    events = np.concatenate(([1], np.maximum(train_events, 1)))
    return RelevantItems(users[by_rank], ranked[by_rank], offsets.size - 1, 1.0 / np.sqrt(events[items[by_rank]]))
