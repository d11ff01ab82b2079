"""Measurement of faithfulness: the values of every user, order, metric and level, for one meaning of removing an event.

    for each history, order and level (levels.py):
        remove the most important events, the least important ones, or all but the most important ones
        find the place and the probability of the explained item again (scoring.py)
    compute the metrics (metrics.py) and their areas over growing shares of the history

All variants of all orders are scored together, in pieces of bounded size. Shapes: B questions, O orders, S levels, M variants.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trainer.explanation.explained import piece_bounds
from trainer.explanation.faithfulness.levels import Levels
from trainer.explanation.faithfulness.metrics import values_at
from trainer.explanation.faithfulness.scoring import Scorer
from trainer.explanation.faithfulness.variants import SIDES, Variants, variants_of
from trainer.explanation.questions import Questions
from trainer.explanation.removal import Removal, remove

PIECE_EVENTS = 1 << 18  # events of the variants that are held at a time


@dataclass(frozen=True)
class UserMeasurements:
    """Values of each user."""

    values: Mapping[tuple[str, str, str], np.ndarray]
    """(B,) float64 in [0, 1] by order, metric and what is removed ("shares" or a number)."""
    how: Removal
    """Meaning of removing an event."""
    lengths: np.ndarray
    """(B,) number of events of each history."""

    @property
    def num_users(self) -> int:
        """B, the number of users."""
        return int(self.lengths.size)

    def names(self, place: int) -> tuple[str, ...]:
        """Return the orders (0), metrics (1) or removals (2) in their first order of appearance."""
        return tuple(dict.fromkeys(key[place] for key in self.values))


def measure(
    scorer: Scorer,
    asked: Questions,
    orders: Mapping[str, np.ndarray],
    how: Removal = "deleted",
    levels: Levels | None = None,
    pool: Questions | None = None,
    seed: int = 0,
) -> UserMeasurements:
    """Return the values of every user. Collective.

    Args:
        scorer: the model.
        asked: questions with at least `levels.fewest_events` events each; their targets are the explained items.
        orders: orders by name (orders.py), (N,) each.
        how: what removing an event means.
        levels: how many events are removed; None: the default ones.
        pool: for how = "replaced", questions with the events to draw from.
        seed: for how = "replaced".
    """
    levels = levels or Levels()
    if asked.size and int(asked.lengths.min()) < levels.fewest_events:
        raise ValueError(f"each history must have at least {levels.fewest_events} events (long_enough)")
    variants = variants_of(asked.lengths, len(orders), levels)
    places, probabilities = _scored(scorer, asked, list(orders.values()), variants, how, pool, seed)
    values = {}
    for number, name in enumerate(orders):
        of_sides = dict(zip(SIDES, variants.index[number], strict=True))
        at_levels = values_at(
            None if places is None else {side: places[index] for side, index in of_sides.items()},
            {side: probabilities[index] for side, index in of_sides.items()},
        )
        for metric, of_levels in at_levels.items():
            for removed, of_users in levels.summarise(of_levels).items():
                values[name, metric, removed] = of_users
    return UserMeasurements(values, how, asked.lengths)


def long_enough(asked: Questions, levels: Levels | None = None) -> np.ndarray:
    """Return the numbers of the questions with enough events for all levels."""
    return np.flatnonzero(asked.lengths >= (levels or Levels()).fewest_events)


def _scored(
    scorer: Scorer,
    asked: Questions,
    orders: list[np.ndarray],
    variants: Variants,
    how: Removal,
    pool: Questions | None,
    seed: int,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the places (M,), None for rankers, and the probabilities (M,) of the targets of all variants. Collective."""
    places: np.ndarray | None = np.zeros(variants.size, np.int64)
    probabilities = np.zeros(variants.size)
    bounds = piece_bounds(asked.lengths[variants.history], PIECE_EVENTS)
    for number in range(scorer.model.most(len(bounds) - 1)):
        start, stop = (bounds[min(number + end, len(bounds) - 1)] for end in (0, 1))
        history, removed = variants.removed(slice(start, stop), orders, asked.offsets)
        scored = scorer.score(remove(asked.take(history), removed, how, pool, seed), history)
        probabilities[start:stop] = scored.probabilities
        if scored.places is None or places is None:
            places = None
        else:
            places[start:stop] = scored.places
    return places, probabilities
