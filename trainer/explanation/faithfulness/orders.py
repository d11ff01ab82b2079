"""Orders of events by importance: from the weights of an explanation, or from simple rules as references. Pure numpy.

An order holds, for each history, the places of its events, the most important first. Orders are packed like the events, (N,) int64
with `offsets` (B + 1,); places count from 0 for the oldest event of each history. Shapes: B histories, N events.
"""

import numpy as np

RANDOM, RECENCY, POPULARITY = "random", "recency", "popularity"
REFERENCES = (RANDOM, RECENCY, POPULARITY)


def order_of(weights: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the order of descending weights. Of equal weights the more recent event comes first.

    Args:
        weights: (N,) of the events; larger is more important. A weight that is not a number comes last.
        offsets: (B + 1,) bounds of the histories.
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(lengths.size), lengths)
    places = np.arange(weights.size) - np.repeat(offsets[:-1], lengths)
    order = np.lexsort((-places, -np.where(np.isnan(weights), -np.inf, weights), owner))
    ordered: np.ndarray = places[order]
    return ordered


def random_order(keys: np.ndarray, offsets: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order that depends on the seed and the key of each history alone, not on the other histories.

    Args:
        keys: (B,) int64, number of each history.
        offsets: as for `order_of`.
        seed: the seed.
    """
    weights = np.concatenate(
        [
            np.zeros(0),
            *(np.random.default_rng([seed, key]).random(n) for key, n in zip(keys, np.diff(offsets), strict=True)),
        ]
    )
    return order_of(weights, offsets)


def recency_order(offsets: np.ndarray) -> np.ndarray:
    """Return the order of events from the newest to the oldest. offsets: as for `order_of`."""
    return order_of(np.zeros(int(offsets[-1])), offsets)


def popularity_order(items: np.ndarray, train_events: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the order of events by the number of training events of their items, the most popular first.

    Args:
        items: (N,) ids of the events, from 1; 0 is an unknown item, which counts as never seen.
        train_events: (V,) of the items by id, from 1 on.
        offsets: as for `order_of`.
    """
    counts = np.concatenate((np.zeros(1, train_events.dtype), train_events))
    return order_of(counts[items], offsets)
