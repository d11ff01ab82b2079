"""Stochastic length: long training histories are shortened to a random part of their events, in most epochs.

Zhai et al. 2024, arXiv:2402.17152, section 3.2, eq. 4. With N = `max_history` and m = N^(alpha / 2), a history of n > m events
keeps all of them with probability m^2 / n^2, and otherwise m events that are drawn evenly (the paper's "random selection"). Each
kept event still predicts the event that follows it in the whole history. Evaluation uses whole histories.

Which events are kept is a function of (seed, epoch, example, position in it) alone, so batches, ranks and resumes make no
difference. The random numbers are hashes of counters.
"""

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset.hashing import mix

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


def shortened_length(max_history: int, alpha: float) -> int:
    """Return m, the number of events of a shortened history."""
    return max(1, int(max_history ** (alpha / 2.0)))


def whole_probabilities(lengths: Int64, shortened: int) -> Float64:
    """Return the probability that a history of each length, 0 or more, keeps all of its events."""
    likely: Float64 = np.minimum(1.0, (shortened / np.maximum(1.0, lengths)) ** 2)
    return likely


def expected_lengths(lengths: Int64, shortened: int) -> Float64:
    """Return the mean number of events that a history of each length keeps."""
    whole = whole_probabilities(lengths, shortened)
    return whole * lengths + (1.0 - whole) * np.minimum(lengths, shortened)


def kept_events(row_ids: Int64, offsets: Int64, shortened: int, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Return whether each event is kept in this epoch: (N,).

    Args:
        row_ids: (B,) ids of the examples.
        offsets: (B + 1,) bounds of their events, from 0.
        shortened: m.
        seed: seed of the run.
        epoch: the epoch.
    """
    lengths = np.diff(offsets)
    examples = mix(row_ids.astype(np.uint64) ^ mix(mix(np.asarray([seed], np.uint64)) + np.uint64(epoch)))
    is_whole = _uniform(mix(~examples)) < whole_probabilities(lengths, shortened)
    kept = np.repeat(is_whole, lengths)
    short = np.flatnonzero(~is_whole)
    if not short.size:
        return kept
    sizes = lengths[short]
    example = np.repeat(np.arange(short.size), sizes)
    starts = np.cumsum(sizes) - sizes
    place = np.arange(example.size) - starts[example]
    number = mix(examples[short][example] + place.astype(np.uint64))
    # Within each example the events with the smallest numbers are kept.
    order = np.lexsort((number, example))
    chosen = order[np.arange(order.size) - starts[example] < shortened]
    kept[offsets[:-1][short][example[chosen]] + place[chosen]] = True
    return kept


def target_probabilities(lengths: Int64, from_end: Int64, shortened: int, newest: int | None) -> Float64:
    """Return the probability that each event is an input with a target that is learned, over all epochs: (N,).

    Args:
        lengths: (N,) length of each event's example.
        from_end: (N,) number of the event from the end of its example, 1 for the last.
        shortened: m.
        newest: only this many newest of the kept events are learned; None: all.
    """
    whole = whole_probabilities(lengths, shortened)
    kept = np.minimum(lengths, shortened)
    if newest is None:
        return whole + (1.0 - whole) * kept / np.maximum(1, lengths)
    among = _at_most(lengths - 1, from_end - 1, kept - 1, newest - 1)
    return whole * (from_end <= newest) + (1.0 - whole) * kept / np.maximum(1, lengths) * among


def _at_most(total: Int64, marked: Int64, drawn: Int64, most: int) -> Float64:
    """Return the probability that at most `most` of the drawn ones are marked (hypergeometric)."""
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, max(1, int(total.max(initial=0))) + 1)))))

    def log_choose(n: Int64, k: Int64) -> Float64:
        possible = (k >= 0) & (k <= n)
        inside = np.where(possible, k, 0)
        return np.where(possible, logs[n] - logs[inside] - logs[n - inside], -np.inf)

    ways = log_choose(total, drawn)
    probability = np.zeros(total.shape)
    for count in range(min(most, int(drawn.max(initial=0))) + 1):
        number = np.full_like(total, count)
        probability += np.exp(log_choose(marked, number) + log_choose(total - marked, drawn - number) - ways)
    return np.minimum(1.0, probability)


def _uniform(bits: NDArray[np.uint64]) -> Float64:
    """Return numbers in [0, 1), from the top 53 of 64 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
