"""Straggler: the expected work of the busiest rank of a step, from the distribution of the work of an example.

A step ends when its busiest rank does. Examples are assumed to be drawn independently. With equal numbers of examples for all ranks
the distribution of a rank's sum is computed exactly, up to a grid of 1/64 of a standard deviation; otherwise batches are drawn with
a fixed seed and dealt by length or work as training does (trainer.data.stream.dealing).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.stream.dealing import BatchLimit, owners, relative_costs

Float64 = NDArray[np.float64]

CELLS_PER_DEVIATION = 64.0
MAX_CELLS = 1 << 19
WIDTH_IN_DEVIATIONS = 24.0  # of a sum that needs more cells than MAX_CELLS
SEED = 20240
NUM_BATCHES = 32  # drawn
MAX_DRAWN = 1 << 21  # examples drawn in all


@dataclass(frozen=True)
class ExampleWork:
    """The distribution of the work of an example."""

    lengths: NDArray[np.int64]  # (n,) input events
    probabilities: Float64  # (n,), with a sum of 1
    work: Float64  # (n,) work of an example of each length, 0 or more, in any unit

    @property
    def mean(self) -> float:
        """The mean work of an example."""
        return float(self.probabilities @ self.work)

    @property
    def deviation(self) -> float:
        """The standard deviation of the work of an example."""
        return float(np.sqrt(self.probabilities @ (self.work - self.mean) ** 2))


def slowest_of_examples(examples: ExampleWork, batch_size: int, num_ranks: int) -> float:
    """Return the expected work of the busiest rank, if a batch has batch_size examples that are dealt evenly.

    Some ranks have one example more than others if num_ranks does not divide batch_size.
    """
    share, rest = divmod(batch_size, num_ranks)
    largest = share + (rest > 0)
    step = examples.deviation / CELLS_PER_DEVIATION
    # Without a spread that exceeds rounding, the ranks with most examples have most work.
    if num_ranks == 1 or step <= 1e-9 * examples.mean:
        return largest * examples.mean
    deviations = WIDTH_IN_DEVIATIONS * np.sqrt(largest) * examples.deviation
    step = max(step, float(deviations) / MAX_CELLS)
    groups = ((largest, rest or num_ranks), (share, num_ranks - rest if rest else 0))
    sums = [(_sum_of(examples, number, step), ranks) for number, ranks in groups if number and ranks]
    first = min(start for (start, _), _ in sums)
    stop = max(start + parts.size for (start, parts), _ in sums)
    below = np.ones(stop - first)  # probability that no rank has more work than each cell
    for (start, parts), ranks in sums:
        cumulative = np.minimum(1.0, np.cumsum(parts))
        padded = np.concatenate((np.zeros(start - first), cumulative, np.ones(stop - start - parts.size)))
        below *= padded**ranks
    return float(step * (stop - 1 - below[:-1].sum()))


def _sum_of(examples: ExampleWork, number: int, step: float) -> tuple[int, Float64]:
    """Return the distribution of the sum of `number` examples in cells of width `step`: the first cell, and probabilities."""
    place, part = np.divmod(examples.work / step, 1.0)
    cells = place.astype(np.int64)
    largest = int(cells.max()) + 1
    whole = number * largest + 1
    size = 1 << (min(whole, MAX_CELLS) - 1).bit_length()
    # A sum that exceeds the cells wraps around. It is unwrapped around its mean, at most half of the cells to each side.
    one = np.zeros(size)
    np.add.at(one, cells % size, examples.probabilities * (1.0 - part))
    np.add.at(one, (cells + 1) % size, examples.probabilities * part)
    parts = np.maximum(0.0, np.fft.irfft(np.fft.rfft(one) ** number, size))
    parts /= parts.sum()
    first = 0 if size >= whole else max(0, round(number * examples.mean / step) - size // 2)
    return first, np.roll(parts, -(first % size))


def slowest_if_dealt(examples: ExampleWork, limit: BatchLimit, num_ranks: int, by_work: bool = False) -> float:
    """Return the expected work of the busiest rank, if the examples of a batch are dealt by length, or by work."""
    mean_length = max(1.0, float(examples.probabilities @ examples.lengths))
    mean_examples = limit.number / mean_length if limit.of_events else float(limit.number)
    if num_ranks == 1:
        return mean_examples * examples.mean
    rng = np.random.default_rng(SEED)
    per_batch = limit.number
    if limit.of_events:
        per_batch = int(1.5 * mean_examples) + int(examples.lengths.max(initial=1)) + 2
    num_batches = max(1, min(NUM_BATCHES, MAX_DRAWN // per_batch))
    costs = None
    if by_work:
        costs = np.zeros(int(examples.lengths.max(initial=0)) + 1, dtype=np.int64)
        costs[examples.lengths] = relative_costs(examples.work)
    ratios = []
    for _ in range(num_batches):
        drawn = rng.choice(examples.lengths.size, per_batch, p=examples.probabilities)
        lengths = examples.lengths[drawn]
        stop = int(limit.runs(lengths, complete=True)[1])
        ranks = owners(lengths[:stop], np.asarray([0, stop]), num_ranks, costs)
        sums = np.bincount(ranks, examples.work[drawn[:stop]], num_ranks)
        ratios.append(sums.max() * num_ranks / max(sums.sum(), 1e-300))
    return float(np.mean(ratios)) * mean_examples * examples.mean / num_ranks
