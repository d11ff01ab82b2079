"""Ranking metrics of users from the ranks of their targets. Pure numpy; every metric is a mean over users.

The relevant items of a user are the distinct ones among the held-out events: an item that repeats counts once, because it has
one place in a ranked list. With R_u the ranks (from 1) of user u's n_u relevant items over the full catalogue, 0 where an item
cannot be ranked:
hr@K    1 if some rank is <= K (hit rate);
ndcg@K  sum over ranks r <= K of 1 / log2(r + 1), over the same sum for ranks 1 .. min(K, n_u) (Jarvelin & Kekalainen 2002);
mrr     1 / smallest rank, 0 if no item can be ranked.
All of them lie in [0, 1], for any targets.
"""

import numpy as np

from trainer.evaluation.confidence import SHARE, mean_interval


def user_metrics(targets: np.ndarray, ranks: np.ndarray, offsets: np.ndarray, ks: list[int]) -> dict[str, np.ndarray]:
    """Return the metrics of each user, (U,) float64 each.

    Args:
        targets: (T,) packed ids of the held-out items; 0 is an unknown item. An id may repeat within a user.
        ranks: (T,) packed, from 1; 0 where a target cannot be ranked.
        offsets: (U + 1,). Every user has at least one target.
        ks: the cut-offs.
    """
    num_users = offsets.size - 1
    users, ranked = _distinct(targets, ranks, offsets)
    counts = np.bincount(users, minlength=num_users)
    best = np.full(num_users, np.inf)
    np.minimum.at(best, users, ranked)
    gains = 1.0 / np.log2(ranked + 1.0)
    columns: dict[str, np.ndarray] = {}
    for k in sorted(set(ks)):
        columns[f"hr@{k}"] = (best <= k).astype(np.float64)
        ideal = np.concatenate(([0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))))
        # Both sums add the larger gains first, one by one. So the rounded sum of a list never exceeds the rounded ideal.
        summed = np.bincount(users, np.where(ranked <= k, gains, 0.0), num_users)
        columns[f"ndcg@{k}"] = summed / ideal[np.minimum(counts, k)]
    columns["mrr"] = 1.0 / best
    return columns


def _distinct(targets: np.ndarray, ranks: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (users, ranks) of the distinct targets, by user and ascending rank; infinity where a target cannot be ranked."""
    users = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    by_item = np.lexsort((targets, users))
    users, items, ranks = users[by_item], targets[by_item], ranks[by_item]
    first = np.ones(items.size, dtype=np.bool_)
    # Unknown items share id 0 and cannot be told apart: each counts as an item of its own.
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1]) | (items[1:] == 0)
    users, ranked = users[first], np.where(ranks > 0, ranks, np.inf)[first]
    by_rank = np.lexsort((ranked, users))
    return users[by_rank], ranked[by_rank]


def means(columns: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values.mean()) if values.size else 0.0 for name, values in columns.items()}


def intervals(columns: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Return 95 % confidence intervals of the means over users, within [0, 1]; [0, 0] without users, as the mean is 0."""
    return {name: list(mean_interval(values, SHARE)) if values.size else [0.0, 0.0] for name, values in columns.items()}
