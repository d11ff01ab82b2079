"""Which examples make up each global batch, and which of them a rank trains.

The invariant: a global batch depends on the position where it starts, and on nothing before it, nor on the number of ranks. So
any position can be gone on from, by any number of ranks, with the identical remainder.

Batches have a number of examples, or a budget of input events (`batch_tokens`): then a batch is the longest run of examples
that the budget holds. In the first case the examples of a batch are dealt evenly, mostly by streams of the order; in the second
they are dealt by length, so that all ranks have about the same work. Neither limits the number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.data.stream.day_examples import DayExamples
from trainer.data.stream.examples import Chosen, Examples
from trainer.data.stream.order import EpochOrder, Position, steps_per_epoch

CHUNK_EVENTS = 1 << 20  # events for which a rank reads row groups at a time, about
MOST_UNEVEN = 1.05  # the largest share over the mean that needs no warning
MAX_CHUNK_EXAMPLES = 1 << 18  # examples looked at a time, all ranks together


@dataclass(frozen=True)
class StepShare:
    """One step: which of the chosen examples this rank trains (first .. stop - 1), the positions before and after it."""

    first: int
    stop: int
    before: Position
    after: Position


@dataclass(frozen=True)
class Block:
    """Steps one after another; first, stop: the chosen examples that they are about."""

    first: int
    stop: int
    steps: tuple[StepShare, ...]


@dataclass(frozen=True)
class Chunk:
    """Some steps of one epoch. bounds: positions between which their global batches lie, (steps + 1,).

    chosen: what this rank trains of them, in its order; of step s those from share[s] to share[s + 1]; num_examples: of the epoch.
    """

    epoch: int
    bounds: np.ndarray
    chosen: Chosen
    share: np.ndarray
    num_examples: int

    def blocks(self, size: int) -> Iterator[Block]:
        """The steps in blocks of about `size` examples of this rank."""
        share, bounds, num_steps = self.share.tolist(), self.bounds.tolist(), self.share.size - 1
        first = 0
        while first < num_steps:
            last = max(first + 1, int(np.searchsorted(self.share, share[first] + size, side="right")) - 1)
            steps = tuple(
                StepShare(
                    share[step],
                    share[step + 1],
                    before := Position(self.epoch, bounds[step]),
                    before.advanced(bounds[step + 1] - bounds[step], self.num_examples),
                )
                for step in range(first, last)
            )
            yield Block(share[first], share[last], steps)
            first = last


@dataclass(frozen=True)
class GlobalBatches:
    """The global batches of a run as one rank sees them. Pure data: iterating holds the only state."""

    examples: Examples | DayExamples
    batch_size: int
    batch_tokens: int | None
    seed: int
    rank: int
    world_size: int

    def chunks(self, start: Position, num_epochs: int) -> Iterator[Chunk]:
        """All steps from `start` to the end of epoch `num_epochs - 1`; the same number on every rank.

        Training by days, epochs are days: these are steps up to day `num_epochs`, which is not trained.
        """
        size = min(MAX_CHUNK_EXAMPLES, self.world_size * max(1, CHUNK_EVENTS // self.examples.typical_events))
        for epoch in range(start.epoch, num_epochs):
            order = self._order(epoch)
            first = start.trained if epoch == start.epoch else 0
            while first < order.num_examples:
                chunk = (
                    self._fixed(order, first, size) if self.batch_tokens is None else self._dealt(order, first, size)
                )
                first = int(chunk.bounds[-1])
                yield chunk

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.examples.of(epoch).group_sizes, self.seed, epoch)

    def num_steps(self, epoch: int, limit: int | None = None) -> int:
        """Steps of a whole epoch, not counted further than `limit`.

        Under a budget of events this goes through the lengths of all examples, a bounded number at a time.
        """
        if self.batch_tokens is None:
            return steps_per_epoch(self.examples.of(epoch).num_examples, self.batch_size)
        order = self._order(epoch)
        count = first = 0
        while first < order.num_examples and (limit is None or count < limit):
            bounds, _ = self._runs(order, first, MAX_CHUNK_EXAMPLES)
            count += bounds.size - 1
            first = int(bounds[-1])
        return count

    def share_warning(self) -> str | None:
        """Return what to tell the user where some ranks train nothing, or notably less than others; None where shares are even."""
        if self.batch_tokens is not None:
            of_batch = self.batch_tokens // self.examples.typical_events
            what = f"train.batch_tokens = {self.batch_tokens} holds about {of_batch} examples"
        else:
            of_batch, what = self.batch_size, f"train.batch_size = {self.batch_size}"
        if isinstance(self.examples, Examples) and self.examples.num_examples < of_batch:
            of_batch, what = (
                self.examples.num_examples,
                f"the dataset has {self.examples.num_examples} training examples",
            )
        if of_batch < self.world_size:
            return (
                f"{what}, fewer than the {self.world_size} workers: at each step at least {self.world_size - of_batch} of them "
                "train nothing. Make batches larger, or lower cluster.num_workers"
            )
        largest = -(-of_batch // self.world_size)
        if self.batch_tokens is None and largest * self.world_size > MOST_UNEVEN * of_batch:
            return (
                f"{what} for {self.world_size} workers: some train {largest} examples of a batch, others {largest - 1} and wait "
                f"for them. Set train.batch_size to a multiple of {self.world_size}, such as {largest * self.world_size}"
            )
        return None

    def _fixed(self, order: EpochOrder, first: int, size: int) -> Chunk:
        stop = min(order.num_examples, first + max(1, size // self.batch_size) * self.batch_size)
        bounds = np.append(np.arange(first, stop, self.batch_size), stop)
        chosen = self.examples.of(order.epoch).choose(order.share(bounds, self.rank, self.world_size))
        return Chunk(order.epoch, bounds, chosen, np.searchsorted(chosen.position, bounds), order.num_examples)

    def _dealt(self, order: EpochOrder, first: int, size: int) -> Chunk:
        bounds, chosen = self._runs(order, first, size)
        assert chosen.length is not None
        mine = dealt(chosen.length[: bounds[-1] - first], bounds - first, self.rank, self.world_size)
        return Chunk(order.epoch, bounds, chosen.taken(mine), np.searchsorted(mine, bounds - first), order.num_examples)

    def _runs(self, order: EpochOrder, first: int, size: int) -> tuple[np.ndarray, Chosen]:
        """Bounds of the batches from position `first` on, and about `size` examples from there, of all ranks."""
        assert self.batch_tokens is not None
        while True:
            chosen = self.examples.of(order.epoch).choose(order.places(first, first + size))
            assert chosen.length is not None
            bounds = runs_within(chosen.length, self.batch_tokens, first + size >= order.num_examples)
            if bounds.size > 1:
                return first + bounds, chosen
            size *= 2  # not even one whole batch


def runs_within(lengths: np.ndarray, budget: int, complete: bool) -> np.ndarray:
    """Cut into the longest runs whose sum is at most `budget`, and which have at least one element: bounds, (runs + 1,) int64.

    `complete`: nothing comes after; else the last run is left out, since it might go on.
    """
    sums = np.concatenate(([0], np.cumsum(lengths)))
    bounds = [0]
    while bounds[-1] < lengths.size:
        fits = int(np.searchsorted(sums, sums[bounds[-1]] + budget, side="right")) - 1
        if fits >= lengths.size and not complete:
            break
        bounds.append(max(fits, bounds[-1] + 1))
    return np.asarray(bounds, dtype=np.int64)


def dealt(lengths: np.ndarray, bounds: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Which elements `rank` gets, ascending: of each run the longest first, to the ranks in turn, and back in the next round."""
    run = np.repeat(np.arange(bounds.size - 1), np.diff(bounds))
    order = np.lexsort((-lengths, run))
    turn, slot = np.divmod(np.arange(lengths.size) - bounds[:-1][run], world_size)
    owner = np.where(turn % 2 == 0, slot, world_size - 1 - slot)
    mine: np.ndarray = np.sort(order[owner == rank])
    return mine
