"""Masked events of training histories: a function of (seed, epoch, example, position in it) alone.

So batches and ranks make no difference, and no state is kept. The random numbers are hashes of counters.
"""

import numpy as np
from numpy.typing import NDArray

from models.config import MaskingConfig
from trainer.data.dataset.hashing import mix

Uint64 = NDArray[np.uint64]


def masked_events(
    row_ids: NDArray[np.int64], offsets: NDArray[np.int64], masking: MaskingConfig, seed: int, epoch: int
) -> NDArray[np.bool_]:
    """Return whether each event is masked: (N,).

    At least one event of every non-empty example is masked: if no number is low enough, the event with the lowest
    number.

    Args:
        row_ids: (B,) ids of the examples.
        offsets: (B + 1,) bounds of their events, from 0.
        masking: the settings.
        seed: seed of the run.
        epoch: the epoch.
    """
    lengths = np.diff(offsets)
    examples = mix(row_ids.astype(np.uint64) ^ mix(mix(np.asarray([seed], np.uint64)) + np.uint64(epoch)))
    example = np.repeat(np.arange(lengths.size), lengths)
    place = np.arange(offsets[-1]) - offsets[:-1][example]
    number = _uniform(mix(examples[example] + place.astype(np.uint64)))
    filled = lengths > 0
    lowest = np.ones(lengths.size)
    lowest[filled] = np.minimum.reduceat(number, offsets[:-1][filled]) if filled.any() else 0.0
    masked: NDArray[np.bool_] = (number < masking.probability) | (number == lowest[example])
    only_last = _uniform(mix(~examples)) < masking.last_probability
    last = place == lengths[example] - 1
    return np.where(only_last[example], last, masked)


def mask_probabilities(
    lengths: NDArray[np.int64], is_last: NDArray[np.bool_], masking: MaskingConfig
) -> NDArray[np.float64]:
    """Return the probability that each event is masked, over all epochs: (N,).

    Args:
        lengths: (N,) length of each event's example, at least 1.
        is_last: (N,) whether the event is the last of its example.
        masking: the settings.
    """
    # By its own number, or as the lowest number if none was low enough; then all events are equally likely.
    by_number = masking.probability + (1.0 - masking.probability) ** lengths / lengths
    only_last = masking.last_probability
    likely: NDArray[np.float64] = (1.0 - only_last) * by_number + only_last * is_last
    return likely


def times_before(times: NDArray[np.int64], masked: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the times (N,) with those of masked events replaced by the last unmasked time before, if there is one.

    For models that do not receive the time of the event to predict.
    """
    example = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    seen = np.maximum.accumulate(np.where(masked, -1, np.arange(times.size)))
    known = seen >= offsets[:-1][example]
    return np.where(known, times[np.maximum(seen, 0)], times)


def _uniform(bits: Uint64) -> NDArray[np.float64]:
    """Return numbers in [0, 1), from the top 53 of 64 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
