"""The global order of training examples, a pure function of (seed, epoch).

Row groups are permuted by (seed, epoch) and dealt to V virtual streams: 64, or train.streams. Examples are permuted
within their row group. The global order takes one example from each stream in turn and skips streams that have ended.
V is fixed per run, so the order does not depend on ranks, and the position in the epoch is one global number. Any
position can be entered directly: resuming and resizing cost nothing and lose or repeat no example.

The examples of a global batch are dealt to W ranks so that their shares differ by at most one, for any W. While whole
streams are even shares, rank r has the streams v with v mod W = r. Otherwise the examples of the batch are sorted by
stream and cut into W pieces, so a rank reads few streams besides its own. With more ranks than streams, several ranks read
the same row groups, each for its own examples: the shares stay even, and only reading costs more.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

STREAMS = 64


@dataclass(frozen=True)
class Places:
    """Locations of the requested examples."""

    # (n,) int64 position in the epoch.
    position: np.ndarray
    # (n,) int64 row group.
    group: np.ndarray
    # (n,) int64 place within the row group.
    place: np.ndarray


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch."""

    # Examples of every row group of the dataset, in the manifest's order.
    group_sizes: tuple[int, ...]
    # Seed of the run.
    seed: int
    # The epoch.
    epoch: int
    # Number of streams, if the dataset has as many row groups.
    max_streams: int = STREAMS

    @cached_property
    def num_examples(self) -> int:
        """Number of examples of the epoch."""
        return sum(self.group_sizes)

    @property
    def num_streams(self) -> int:
        """Number of virtual streams."""
        return min(self.max_streams, len(self.group_sizes))

    @cached_property
    def permuted(self) -> np.ndarray:
        """Row groups in the order in which they are dealt to the streams, (groups,) int64."""
        return np.random.default_rng([self.seed, self.epoch, 0]).permutation(len(self.group_sizes))

    @cached_property
    def _dealt(self) -> list[np.ndarray]:
        """Row groups of each stream, in the order in which the stream reads them."""
        return [self.permuted[stream :: self.num_streams] for stream in range(self.num_streams)]

    @cached_property
    def _layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All streams one after another: (groups, first place of each group, first place of each stream)."""
        groups = np.concatenate(self._dealt)
        sizes = np.asarray(self.group_sizes, dtype=np.int64)
        group_start = np.concatenate(([0], np.cumsum(sizes[groups])))
        lengths = np.asarray([sizes[dealt].sum() for dealt in self._dealt], dtype=np.int64)
        return groups, group_start, np.concatenate(([0], np.cumsum(lengths)))

    @cached_property
    def _segments(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Segments of the epoch with the same active streams: (bounds of positions, first round, active streams)."""
        lengths = np.diff(self._layout[2])
        ends = np.unique(lengths[lengths > 0])
        first_round = np.concatenate(([0], ends[:-1]))
        alive = [np.flatnonzero(lengths > start) for start in first_round]
        sizes = [streams.size * (end - start) for streams, start, end in zip(alive, first_round, ends, strict=True)]
        return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64), first_round, alive

    def streams(
        self, start: int, stop: int, rank: int = 0, world_size: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (position, stream, index within the stream) of positions start .. stop - 1, ascending by position.

        Only streams v with v mod world_size = rank are returned. The work is proportional to the result, for any number
        of ranks.
        """
        bounds, first_round, alive = self._segments
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds[:-1], stop, side="left"))
        pieces = [np.zeros((3, 0), dtype=np.int64)]
        for segment in range(first, last):  # at most as many as streams
            size = alive[segment].size
            low, high = np.clip((start, stop), bounds[segment], bounds[segment + 1]) - bounds[segment]
            slots = np.flatnonzero(alive[segment] % world_size == rank)
            turns = np.arange(low // size, -(-high // size))
            offset = (turns[:, None] * size + slots[None, :]).reshape(-1)
            stream = np.broadcast_to(alive[segment][slots], (turns.size, slots.size)).reshape(-1)
            index = first_round[segment] + np.repeat(turns, slots.size)
            inside = slice(*np.searchsorted(offset, (low, high)))
            pieces.append(np.stack((bounds[segment] + offset, stream, index))[:, inside])
        position, stream, index = np.concatenate(pieces, axis=1)
        return position, stream, index

    def places(self, start: int, stop: int) -> Places:
        """Return the examples at positions start .. stop - 1, in global order."""
        return self._places(*self.streams(start, stop))

    def share(self, bounds: np.ndarray, rank: int, world_size: int) -> Places:
        """Return the examples of several global batches that `rank` trains, in global order.

        Args:
            bounds: (batches + 1,) positions that bound the batches, ascending, without empty batches.
            rank: number of the rank.
            world_size: number of ranks. The shares of one batch differ by at most one example.
        """
        start, stop = int(bounds[0]), int(bounds[-1])
        whole_streams = self.num_streams % world_size == 0 and stop <= self._first_end
        if whole_streams:  # the same result as below, for the work of one rank's share
            return self._places(*self.streams(start, stop, rank, world_size))
        position, stream, index = self.streams(start, stop)
        mine = np.flatnonzero(_owners(stream, np.diff(bounds), world_size) == rank)
        return self._places(position[mine], stream[mine], index[mine])

    @cached_property
    def _first_end(self) -> int:
        """Position up to which all streams are active."""
        bounds, _, alive = self._segments
        return int(bounds[1]) if alive and alive[0].size == self.num_streams else 0

    def _places(self, position: np.ndarray, stream: np.ndarray, index: np.ndarray) -> Places:
        groups, group_start, stream_start = self._layout
        # Sorted by stream, the examples of a row group are adjacent (a sort of small integers is linear).
        by_stream = np.argsort(stream.astype(np.uint16), kind="stable")
        served = (stream_start[stream] + index)[by_stream]
        ordinal = np.searchsorted(group_start, served, side="right") - 1
        bounds = np.concatenate(([0], np.flatnonzero(np.diff(ordinal)) + 1, [served.size]))
        permuted = np.empty_like(served)
        for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):  # row groups, never examples
            if high > low:
                within = served[low:high] - group_start[ordinal[low]]
                permuted[low:high] = self._permutation(int(groups[ordinal[low]]))[within]
        group = np.empty_like(served)
        place = np.empty_like(served)
        group[by_stream] = groups[ordinal]
        place[by_stream] = permuted
        return Places(position, group, place)

    @cached_property
    def _permutations(self) -> OrderedDict[int, np.ndarray]:
        return OrderedDict()

    def _permutation(self, group: int) -> np.ndarray:
        """Return the permutation of a row group. It is drawn once while the group is read, chunk by chunk."""
        drawn = self._permutations
        if group not in drawn:
            generator = np.random.default_rng([self.seed, self.epoch, 1, group])
            drawn[group] = generator.permutation(self.group_sizes[group]).astype(np.int32)
            if len(drawn) > 2 * self.max_streams:
                drawn.popitem(last=False)
        drawn.move_to_end(group)
        return drawn[group]


def _owners(stream: np.ndarray, sizes: np.ndarray, world_size: int) -> np.ndarray:
    """Return the rank that trains each example: (n,) int64.

    Args:
        stream: (n,) stream of the examples of some global batches, one batch after another.
        sizes: sizes of the batches.
        world_size: the number of ranks.
    """
    batch = np.repeat(np.arange(sizes.size), sizes)
    home = stream % world_size
    # If whole streams are even shares, ranks keep their streams and read no others, as without this function.
    key, counts = np.unique(batch * world_size + home, return_counts=True)
    of_batch = key // world_size
    share = sizes // world_size
    uneven = (counts < share[of_batch]) | (counts > -(-sizes // world_size)[of_batch])
    num_homes = np.bincount(of_batch, minlength=sizes.size)
    even = (np.bincount(of_batch, uneven, sizes.size) == 0) & ((share == 0) | (num_homes == world_size))
    by_stream = np.lexsort((stream, home, batch))
    slot = np.empty_like(batch)
    slot[by_stream] = np.arange(batch.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    owners: np.ndarray = np.where(even[batch], home, slot * world_size // sizes[batch])
    return owners


@dataclass(frozen=True)
class Position:
    """A data position."""

    # The epoch, or day.
    epoch: int
    # Examples of this epoch that are already trained.
    trained: int

    def advanced(self, count: int, num_examples: int) -> "Position":
        """Return the position after `count` more examples, or the start of the next epoch. The last batch may be partial."""
        trained = self.trained + count
        return Position(self.epoch, trained) if trained < num_examples else Position(self.epoch + 1, 0)

    def as_number(self, num_examples: int) -> int:
        """Return one global number: examples trained since the start of the run."""
        return self.epoch * num_examples + self.trained


def position_of(number: int, num_examples: int) -> Position:
    """Return the position of a global number, the inverse of Position.as_number."""
    return Position(*divmod(number, num_examples))


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Return the number of batches of an epoch, including a partial last one."""
    return -(-num_examples // batch_size)
