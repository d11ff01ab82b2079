"""Removal of events from questions. Methods and measurements of faithfulness use the same forms.

    deleted    the other events close the gaps: positions count without the event; times and gaps between times follow
    masked     the event stays where it is, with its time, as a vector of zeros: without item, features and vectors of time
    replaced   another event of the pool takes its place: item and features of that event, and the time of this one

Events that stay keep their times. Older events that the model's cut left out do not move up. All items can be removed: an
empty history has the score 0 in a next-item model, as everywhere in Shoal.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from trainer.data.dataset.hashing import mix
from trainer.data.stream.columns import concatenate_all, take_all
from trainer.explanation.questions import Questions

Removal = Literal["deleted", "masked", "replaced"]
REMOVALS: tuple[Removal, ...] = ("deleted", "masked", "replaced")


def remove(
    asked: Questions, removed: np.ndarray, how: Removal = "deleted", pool: Questions | None = None, seed: int = 0
) -> Questions:
    """Return the questions without some of their events.

    Args:
        asked: the questions.
        removed: (N,) bool, the events to remove.
        how: what removal means.
        pool: for "replaced", questions with the events to draw from.
        seed: for "replaced". A draw depends on the seed, the key of the question and the place of the event.
    """
    match how:
        case "deleted":
            return asked.only(~removed)
        case "masked":
            return replace(asked, zeroed=removed if asked.zeroed is None else asked.zeroed | removed)
        case "replaced":
            assert pool is not None, "replaced events are drawn from a pool"
            return _replaced(asked, removed, pool, seed)


def _replaced(asked: Questions, removed: np.ndarray, pool: Questions, seed: int) -> Questions:
    number = asked.items.size
    source = np.arange(number)
    from_end = (asked.lengths[asked.owner] - 1 - asked.places)[removed]
    source[removed] = number + draws(asked.keys[asked.owner[removed]], from_end, pool.items.size, seed)
    items = np.concatenate((asked.items, pool.items))[source]
    features = asked.features
    if features:
        features = take_all(concatenate_all([asked.features, pool.features]), source)
    return replace(asked, items=items, features=features)


def draws(keys: np.ndarray, places: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return a number below `number` for each pair of a key and a place, (n,) int64, as a function of these and the seed."""
    assert number > 0, "nothing to draw from"
    start = mix(np.asarray([seed], np.uint64))
    hashed = mix(mix(keys.astype(np.uint64) ^ start) + places.astype(np.uint64))
    return (hashed % np.uint64(number)).astype(np.int64)


def variants(
    asked: Questions,
    owner: np.ndarray,
    removed_of: Callable[[np.ndarray], np.ndarray],
    how: Removal,
    pieces: Iterator[slice],
    pool: Questions | None = None,
    seed: int = 0,
) -> Iterator[tuple[slice, Questions]]:
    """Yield variants of questions piece by piece, each with its numbers.

    Args:
        asked: the questions.
        owner: (V,) question of each variant.
        removed_of: returns for the numbers of some variants, (n,), which events of `asked.take(owner[numbers])` are removed, as
            packed bool.
        how: as for `remove`.
        pieces: the numbers of each piece.
        pool: as for `remove`.
        seed: as for `remove`.
    """
    numbers = np.arange(owner.size)
    for piece in pieces:
        repeated = asked.take(owner[piece])
        yield piece, remove(repeated, removed_of(numbers[piece]), how, pool, seed)
