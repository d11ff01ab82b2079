"""Global batches: the examples of each, and the share of each that a rank trains.

The invariant: a global batch depends on its start position alone, not on earlier batches nor on the number of ranks. So
training resumes from any position, with any number of ranks, with the identical remainder.

A batch has a fixed number of examples, or a budget of input events (`batch_tokens`): then it is the longest run of
examples within the budget. The examples of a batch are dealt by length or cost (`is_dealt`), so that all ranks have about equal
work, or evenly, mostly by streams of the order. Neither limits the number of ranks. With `lengths`, ranks exchange the examples of
batches that are dealt (trainer.data.stream.exchange). Without, a rank reads all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.data.stream.day_examples import DayExamples
from trainer.data.stream.dealing import BatchLimit, dealt, limit_of
from trainer.data.stream.examples import Chosen, Examples
from trainer.data.stream.exchange.counting import count_steps
from trainer.data.stream.exchange.lengths import ExampleLengths
from trainer.data.stream.order import STREAMS, EpochOrder, Position, steps_per_epoch

CHUNK_EVENTS = 1 << 20  # approximate events for which a rank reads row groups at a time
MOST_UNEVEN = 1.05  # the largest share over the mean that needs no warning
MAX_CHUNK_EXAMPLES = 1 << 18  # most examples that are processed at a time, over all ranks


@dataclass(frozen=True)
class StepShare:
    """The share of this rank in one step."""

    # First of the chosen examples of this rank.
    first: int
    # End of these examples.
    stop: int
    # Position before the step.
    before: Position
    # Position after the step.
    after: Position


@dataclass(frozen=True)
class StepBlock:
    """Consecutive steps."""

    # First of the chosen examples of these steps.
    first: int
    # End of these examples.
    stop: int
    # The steps.
    steps: tuple[StepShare, ...]


@dataclass(frozen=True)
class Chunk:
    """Some steps of one epoch."""

    # The epoch.
    epoch: int
    # (steps + 1,) positions that bound the global batches.
    bounds: np.ndarray
    # Examples of this rank, in its order.
    chosen: Chosen
    # (steps + 1,) bounds of each step's examples in `chosen`.
    share: np.ndarray
    # Examples of the epoch.
    num_examples: int

    def blocks(self, size: int) -> Iterator[StepBlock]:
        """Yield the steps in blocks of about `size` examples of this rank."""
        share = self.share.tolist()
        bounds = self.bounds.tolist()
        num_steps = self.share.size - 1
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
            yield StepBlock(share[first], share[last], steps)
            first = last


@dataclass(frozen=True)
class GlobalBatches:
    """The global batches of a run, seen by one rank. Pure data: iteration holds the only state."""

    # All examples.
    examples: Examples | DayExamples
    # Examples of a global batch.
    batch_size: int
    # Input events of a global batch, instead of a number of examples.
    batch_tokens: int | None
    # Seed of the order.
    seed: int
    # Number of this rank.
    rank: int
    # Number of ranks.
    world_size: int
    # Number of streams of the order.
    streams: int = STREAMS
    # Lengths of examples, if ranks divide them and exchange examples.
    lengths: ExampleLengths | None = None
    # If examples are dealt: cost of an example of each length from 0 on, int64, by which they are. None: by length.
    costs: np.ndarray | None = None
    # Whether several ranks deal the examples of batches of a fixed number too.
    deals_fixed: bool = False

    def chunks(self, start: Position, num_epochs: int) -> Iterator[Chunk]:
        """Yield all steps from `start` to the end of epoch `num_epochs - 1`, the same number on every rank.

        With daily training epochs are days: the steps go up to day `num_epochs`, which is not trained.
        """
        size = self.chunk_examples
        for epoch in range(start.epoch, num_epochs):
            order = self.order(epoch)
            first = start.trained if epoch == start.epoch else 0
            while first < order.num_examples:
                chunk = self._dealt(order, first, size) if self.is_dealt else self._fixed(order, first, size)
                first = int(chunk.bounds[-1])
                yield chunk

    @property
    def limit(self) -> BatchLimit:
        """Return the limit of a batch."""
        return limit_of(self.batch_size, self.batch_tokens)

    @property
    def is_dealt(self) -> bool:
        """Return whether examples are dealt by length or cost, and not evenly by the order."""
        return self.batch_tokens is not None or (self.deals_fixed and self.world_size > 1)

    @property
    def chunk_examples(self) -> int:
        """Number of examples that are processed at a time, over all ranks."""
        return min(MAX_CHUNK_EXAMPLES, self.world_size * max(1, CHUNK_EVENTS // self.examples.typical_events))

    def order(self, epoch: int) -> EpochOrder:
        """Return the order of the examples of an epoch, or day."""
        return EpochOrder(self.examples.of(epoch).group_sizes, self.seed, epoch, self.streams)

    def num_steps(self, epoch: int, limit: int | None = None) -> int:
        """Return the number of steps of a whole epoch, counted up to `limit`.

        With a budget of events it reads the lengths of all examples, a bounded number at a time.
        """
        if self.batch_tokens is None:
            return steps_per_epoch(self.examples.of(epoch).num_examples, self.batch_size)
        order = self.order(epoch)
        count = first = 0
        while first < order.num_examples and (limit is None or count < limit):
            bounds, _ = self._runs(order, first, MAX_CHUNK_EXAMPLES)
            count += bounds.size - 1
            first = int(bounds[-1])
        return count

    def count_steps(self, epoch: int | None, limit: int | None = None) -> int:
        """Return the number of steps of a whole epoch, counted up to `limit`, or 0 for None. Collective.

        Each rank may count another epoch. None takes part without counting.
        """
        if self.lengths is None or self.batch_tokens is None:
            return 0 if epoch is None else self.num_steps(epoch, limit)
        order = None if epoch is None else self.order(epoch)
        return count_steps(order, self.lengths, self.batch_tokens, limit, MAX_CHUNK_EXAMPLES)

    def share_warning(self) -> str | None:
        """Return a warning if some ranks train nothing, or clearly less than others; None if shares are even."""
        if self.batch_tokens is not None:
            of_batch = self.batch_tokens // self.examples.typical_events
            what = f"train.batch_tokens = {self.batch_tokens} holds about {of_batch} examples"
        else:
            of_batch = self.batch_size
            what = f"train.batch_size = {self.batch_size}"
        if isinstance(self.examples, Examples) and self.examples.num_examples < of_batch:
            of_batch = self.examples.num_examples
            what = f"the dataset has {self.examples.num_examples} training examples"
        if of_batch < self.world_size:
            return (
                f"{what}, fewer than the {self.world_size} workers: at each step at least {self.world_size - of_batch} of them "
                "train nothing. Make batches larger, or lower cluster.num_workers"
            )
        largest = -(-of_batch // self.world_size)
        if self.batch_tokens is None and largest * self.world_size > MOST_UNEVEN * of_batch:
            return (
                f"{what} for {self.world_size} workers: some train {largest} examples of a batch, others train {largest - 1} and "
                f"wait. Set train.batch_size to a multiple of {self.world_size}, such as {largest * self.world_size}"
            )
        if self.world_size > self.streams and self.lengths is None:
            shared = -(-self.world_size // self.streams)
            return (
                f"train.streams = {self.streams} for {self.world_size} workers: up to {shared} workers read each row group, each "
                f"for its own examples. The shares are even. If reading is slow, set train.streams = {self.world_size} in a new "
                "run, which changes the order of examples"
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
        mine = dealt(chosen.length[: bounds[-1] - first], bounds - first, self.rank, self.world_size, self.costs)
        return Chunk(order.epoch, bounds, chosen.taken(mine), np.searchsorted(mine, bounds - first), order.num_examples)

    def _runs(self, order: EpochOrder, first: int, size: int) -> tuple[np.ndarray, Chosen]:
        """Return bounds of the batches from position `first` on, and about `size` examples of all ranks from there."""
        while True:
            chosen = self.examples.of(order.epoch).choose(order.places(first, first + size))
            assert chosen.length is not None
            bounds = self.limit.runs(chosen.length, first + size >= order.num_examples)
            if bounds.size > 1:
                return first + bounds, chosen
            size *= 2  # not even one whole batch
