"""Which events of a training history are masked: a function of (seed, epoch, example, place in it), and of nothing else.

So neither batches nor ranks make a difference, and nothing has to be remembered. The random numbers are hashes of counters.
"""

import numpy as np
from numpy.typing import NDArray

from models.config import MaskingConfig
from trainer.data.dataset.hashing import mix

Uint64 = NDArray[np.uint64]


def masked_events(
    row_ids: NDArray[np.int64], offsets: NDArray[np.int64], masking: MaskingConfig, seed: int, epoch: int
) -> NDArray[np.bool_]:
    """(N,) whether each event is masked. row_ids: (B,) of examples; offsets: (B + 1,) from 0, of their events.

    Of every example that has events at least one is: the one that comes nearest to it, if none is by its own number.
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
    """Return how likely each event is masked, over all epochs: (N,).

    Args:
        lengths: of the example of each event, (N,), at least 1.
        is_last: whether the event is the last of its example, (N,).
        masking: the settings.
    """
    # By its own number, or as the one that comes nearest to it: then no number was low enough, and each event is as likely.
    by_number = masking.probability + (1.0 - masking.probability) ** lengths / lengths
    only_last = masking.last_probability
    likely: NDArray[np.float64] = (1.0 - only_last) * by_number + only_last * is_last
    return likely


def times_before(times: NDArray[np.int64], masked: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) times where masked events have that of the last event before them that is not masked; their own if there is none.

    For models that are not told when the event that they are to guess happened.
    """
    example = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    seen = np.maximum.accumulate(np.where(masked, -1, np.arange(times.size)))
    known = seen >= offsets[:-1][example]
    return np.where(known, times[np.maximum(seen, 0)], times)


def _uniform(bits: Uint64) -> NDArray[np.float64]:
    """[0, 1): the top 53 of 64 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
