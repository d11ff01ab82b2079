"""Comparison of two explanations of the same questions: rank correlation and common events. Pure numpy.

Shapes: B questions, N events of all of them.
"""

import numpy as np

from trainer.explanation.faithfulness.orders import order_of


def average_ranks(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the rank of each value in its question, from 0, (N,) float64; equal values share their mean rank.

    Args:
        values: (N,), none of them NaN.
        offsets: (B + 1,) bounds of the questions.
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(lengths.size), lengths)
    order = np.lexsort((values, owner))
    sorted_values, sorted_owner = values[order], owner[order]
    is_new = np.ones(values.size, np.bool_)
    is_new[1:] = (sorted_values[1:] != sorted_values[:-1]) | (sorted_owner[1:] != sorted_owner[:-1])
    group = np.cumsum(is_new) - 1
    place = np.arange(values.size) - offsets[:-1][sorted_owner]
    mean = np.bincount(group, place) / np.bincount(group)
    ranks = np.empty(values.size)
    ranks[order] = mean[group]
    return ranks


def rank_correlations(first: np.ndarray, second: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of two explanations of each question, (B,); NaN where one of them is constant.

    Args:
        first: (N,) weights.
        second: (N,) weights.
        offsets: (B + 1,) bounds of the questions.
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(lengths.size), lengths)
    centred = [average_ranks(values, offsets) - (lengths[owner] - 1) / 2 for values in (first, second)]

    def total(products: np.ndarray) -> np.ndarray:
        return np.bincount(owner, products, lengths.size)

    scale = np.sqrt(total(centred[0] ** 2) * total(centred[1] ** 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(scale > 0, total(centred[0] * centred[1]) / scale, np.nan))


def common_share(first: np.ndarray, second: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """Return the share of the k most important events that two explanations of a question have in common, (B,).

    Args:
        first: (N,) weights.
        second: (N,) weights.
        offsets: (B + 1,) bounds of the questions.
        k: the number of events; fewer for a shorter question.
    """
    chosen = [first_events(order_of(values, offsets), offsets, k) for values in (first, second)]
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(lengths.size), lengths)
    both = np.bincount(owner, chosen[0] & chosen[1], lengths.size)
    return np.asarray(both / np.maximum(1, np.minimum(k, lengths)))


def first_events(order: np.ndarray, offsets: np.ndarray, k: int) -> np.ndarray:
    """Return which events are among the first k of an order, (N,) bool.

    Args:
        order: (N,) places, the most important first.
        offsets: (B + 1,) bounds of the questions.
        k: the number of events.
    """
    lengths = np.diff(offsets)
    start = np.repeat(offsets[:-1], lengths)
    flags = np.zeros(order.size, np.bool_)
    flags[start + order] = np.arange(order.size) - start < k
    return flags
