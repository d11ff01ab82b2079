"""Variants of histories: the distinct sets of events that are removed, for all orders and levels together. Pure numpy.

A variant removes a stretch of an order. Different orders and levels often remove the same stretch, such as none; each distinct one
is scored once. Shapes: B histories, O orders, S levels, M variants, N events.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.stream.columns import stretches
from trainer.explanation.faithfulness.levels import Levels
from trainer.explanation.faithfulness.metrics import Side

SIDES: tuple[Side, ...] = ("most", "least", "kept")


@dataclass(frozen=True)
class Variants:
    """M variants of B histories."""

    history: np.ndarray
    """(M,) int64, number of the history of each variant, ascending."""
    order: np.ndarray
    """(M,) int64, number of its order."""
    first: np.ndarray
    """(M,) int64, first place of the order that is removed."""
    stop: np.ndarray
    """(M,) int64, one past the last place that is removed."""
    index: np.ndarray
    """(O, 3, B, S) int64, the variant of each order, side and level."""

    @property
    def size(self) -> int:
        """M, the number of variants."""
        return int(self.history.size)

    def removed(self, rows: slice, orders: Sequence[np.ndarray], offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which events some variants remove: the history of each variant, and packed flags of their events.

        Args:
            rows: the variants.
            orders: O orders, (N,) each.
            offsets: (B + 1,) bounds of the histories.
        """
        history, order = self.history[rows], self.order[rows]
        events, bounds = stretches(offsets[history], offsets[history + 1])
        lengths = np.diff(bounds)
        place_in_order = np.arange(events.size) - np.repeat(bounds[:-1], lengths)
        is_removed = (place_in_order >= np.repeat(self.first[rows], lengths)) & (
            place_in_order < np.repeat(self.stop[rows], lengths)
        )
        event = np.stack(list(orders))[np.repeat(order, lengths), events]
        flags = np.zeros(events.size, np.bool_)
        flags[np.repeat(bounds[:-1], lengths) + event] = is_removed
        return history, flags


def variants_of(lengths: np.ndarray, num_orders: int, levels: Levels) -> Variants:
    """Return the distinct variants of histories, by history.

    Args:
        lengths: (B,) number of events of each history.
        num_orders: O.
        levels: the levels.
    """
    bounds = [levels.removed(lengths, side) for side in SIDES]
    first, stop = (np.stack([pair[number] for pair in bounds]) for number in (0, 1))
    shape = (num_orders, *first.shape)
    first, stop = np.broadcast_to(first, shape).reshape(-1), np.broadcast_to(stop, shape).reshape(-1)
    order = np.broadcast_to(np.arange(num_orders)[:, None, None, None], shape).reshape(-1)
    history = np.broadcast_to(np.arange(lengths.size)[:, None], shape).reshape(-1)
    # Without a removed event all orders and stretches are the same.
    nothing = first == stop
    first, stop, order = (np.where(nothing, 0, column) for column in (first, stop, order))
    base = int(lengths.max(initial=0)) + 1
    key = ((history * num_orders + order) * base + first) * base + stop
    _, place, index = np.unique(key, return_index=True, return_inverse=True)
    return Variants(history[place], order[place], first[place], stop[place], index.reshape(shape))
