"""Paired bootstrap over users: 95 % intervals of mean differences. Pure numpy.

All columns are resampled with the same users, so the result does not depend on which columns are computed together.
"""

import math
from collections.abc import Iterable

import numpy as np

RESAMPLES = 10_000
SEED = 1
MAX_UNITS = 10_000  # units that are drawn; more users are first combined into blocks
FEW_USERS = 100  # with fewer users that differ, intervals are score intervals instead (differences.py)
_CHUNK_BYTES = 16 << 20


def bootstrap_means(
    columns: Iterable[np.ndarray], num_users: int, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Return the means (resamples, columns) over users drawn with replacement.

    More than MAX_UNITS users are combined at random into that many blocks, and blocks are drawn instead. Users are independent,
    so the mean then has the same variance and skewness. Sizes of blocks differ by at most one user.

    Args:
        columns: numbers of the same users, (users,) each; read one at a time, so that not all of them are in memory.
        num_users: the number of users.
        resamples: the number of draws.
        seed: the seed of the draws.
    """
    generator = np.random.default_rng(seed)
    units = min(num_users, MAX_UNITS)
    block = generator.permutation(num_users) % units if num_users > units else np.arange(num_users)
    counts = np.bincount(block, minlength=units).astype(np.float64)
    sums = np.stack([np.bincount(block, column, units) for column in columns], axis=1)
    rows = min(resamples, max(1, _CHUNK_BYTES // (8 * units)))
    weights, means = np.empty((rows, units)), np.empty((resamples, sums.shape[1]))
    for start in range(0, resamples, rows):
        number = min(rows, resamples - start)
        drawn = generator.integers(0, units, (number, units), dtype=np.int32)
        for row in range(number):  # one count at a time stays in the cache
            weights[row] = np.bincount(drawn[row], minlength=units)
        means[start : start + number] = (weights[:number] @ sums) / (weights[:number] @ counts)[:, None]
    return means


def percentile_intervals(means: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Return the bounds (columns, 2) between which the middle share of bootstrapped means (resamples, columns) are."""
    tail = (1.0 - confidence) / 2.0
    bounds: np.ndarray = np.quantile(means, [tail, 1.0 - tail], axis=0).T
    return bounds


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of independent values (n,); infinity for a single one."""
    return float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.inf
