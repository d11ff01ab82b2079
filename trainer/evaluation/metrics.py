"""Ranking metrics of users from the ranks of their targets. Pure numpy; every metric is a mean over users.

With R_u the ranks (from 1) of user u's n_u targets over the full catalogue, 0 where a target cannot be ranked:
hr@K    1 if some rank is <= K (hit rate);
ndcg@K  sum over ranks r <= K of 1 / log2(r + 1), over the same sum for ranks 1 .. min(K, n_u) (Jarvelin & Kekalainen 2002);
mrr     1 / smallest rank, 0 if no target can be ranked.
"""

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def user_metrics(ranks: np.ndarray, offsets: np.ndarray, ks: list[int]) -> dict[str, np.ndarray]:
    """Metrics per user, (U,) float64 each. ranks: (T,) packed; offsets: (U + 1,), every user has at least one target."""
    counts = np.diff(offsets)
    ranked = np.where(ranks > 0, ranks, np.inf).astype(np.float64)
    first = offsets[:-1]
    best = np.minimum.reduceat(ranked, first) if counts.size else np.zeros(0)
    gains = 1.0 / np.log2(ranked + 1.0)
    columns: dict[str, np.ndarray] = {}
    for k in sorted(set(ks)):
        columns[f"hr@{k}"] = (best <= k).astype(np.float64)
        ideal = np.concatenate(([0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))))
        within = np.where(ranked <= k, gains, 0.0)
        summed = np.add.reduceat(within, first) if counts.size else np.zeros(0)
        columns[f"ndcg@{k}"] = summed / ideal[np.minimum(counts, k)]
    columns["mrr"] = 1.0 / best
    return columns


def means(columns: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values.mean()) if values.size else 0.0 for name, values in columns.items()}


def intervals(columns: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """95 % confidence intervals of the means over users, by the central limit theorem: mean -+ 1.96 standard errors."""
    bounds = {}
    for name, values in columns.items():
        mean = float(values.mean()) if values.size else 0.0
        error = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else 0.0
        bounds[name] = [mean - Z95 * error, mean + Z95 * error]
    return bounds
