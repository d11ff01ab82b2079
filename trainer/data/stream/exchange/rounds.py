"""Rounds of exchange: the stretches of an epoch, and what a rank reads, sends and receives in each. It calls no collective.

The batches of a round are those that end in its stretch. The examples after the last of them are kept for the next round. So the
batches do not depend on where stretches begin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.features.unique import unique_ids
from trainer.data.stream.dealing import BatchLimit, owners
from trainer.data.stream.examples import Chosen, Examples, windows_of
from trainer.data.stream.exchange.payload import ExampleEvents, cut_out, decode, encode
from trainer.data.stream.exchange.readers import readers_of
from trainer.data.stream.global_batches import Chunk, GlobalBatches
from trainer.data.stream.order import EpochOrder, Places, Position
from trainer.data.stream.packed import PackedHistories
from trainer.data.stream.row_groups import RowGroupReader
from trainer.data.stream.shares import read_rows

FIRST_SHARE = 64  # the first stretch is a 64th of the others, so that training starts early; the following ones double


@dataclass(frozen=True)
class Stretch:
    """Consecutive examples of an epoch, in its order."""

    # The epoch.
    order: EpochOrder
    # (groups,) the rank that reads each row group.
    readers: np.ndarray
    # The examples.
    places: Places
    # Whether the epoch ends with them.
    is_last: bool


def stretches_of(
    batches: GlobalBatches, group_events: Sequence[int], start: Position, num_epochs: int
) -> Iterator[Stretch]:
    """Yield the stretches from `start` to the end of epoch `num_epochs - 1`, the same on all ranks.

    group_events: events of every row group.
    """
    size = batches.chunk_examples
    number = max(1, size // FIRST_SHARE)
    first = start.trained
    work = np.asarray(group_events, dtype=np.int64)
    for epoch in range(start.epoch, num_epochs):
        order = batches.order(epoch)
        readers = readers_of(order.permuted, work, order.num_streams, batches.world_size)
        while first < order.num_examples:
            stop = min(order.num_examples, first + number)
            yield Stretch(order, readers, order.places(first, stop), stop == order.num_examples)
            first = stop
            number = min(size, 2 * number)
        first = 0


@dataclass(frozen=True)
class Arriving:
    """The examples that a rank trains in a round, as they arrive: those of the first rank, then those of the next one."""

    # The epoch.
    epoch: int
    # Examples of the epoch.
    num_examples: int
    # (steps + 1,) positions that bound the global batches.
    bounds: np.ndarray
    # (n,) positions of the examples, ascending.
    position: np.ndarray
    # (n,) place of each of these examples among those that arrive.
    row: np.ndarray
    # (n,) input events of the examples as they arrive.
    length: np.ndarray
    # (ranks,) number of examples that arrive from each rank.
    counts: list[int]

    @property
    def num_steps(self) -> int:
        """Number of global batches."""
        return self.bounds.size - 1

    @property
    def chunk(self) -> Chunk:
        """The steps, with the examples of this rank as windows of their own."""
        nothing = np.zeros_like(self.position)
        chosen = Chosen(self.position, nothing, self.row, nothing, None)
        share = np.searchsorted(self.position, self.bounds)
        return Chunk(self.epoch, self.bounds, chosen, share, self.num_examples)


@dataclass(frozen=True)
class Outgoing:
    """The part of a rank in a round."""

    # The bytes for all ranks, one after another.
    payload: np.ndarray
    # Their number for each rank.
    sent: list[int]
    # The examples that it receives.
    arriving: Arriving


@dataclass(frozen=True)
class Received:
    """Examples that arrived in a round."""

    # The examples.
    arriving: Arriving
    # Their bytes.
    payload: np.ndarray


@dataclass(frozen=True)
class _Held:
    """Examples in the order of the epoch."""

    # (n,) positions.
    position: np.ndarray
    # (n,) row groups.
    group: np.ndarray
    # (n,) places within the row groups.
    place: np.ndarray
    # (n,) input events.
    length: np.ndarray

    def taken(self, index: np.ndarray | slice) -> "_Held":
        return _Held(self.position[index], self.group[index], self.place[index], self.length[index])

    def followed_by(self, other: "_Held") -> "_Held":
        return _Held(
            np.concatenate((self.position, other.position)),
            np.concatenate((self.group, other.group)),
            np.concatenate((self.place, other.place)),
            np.concatenate((self.length, other.length)),
        )


_NOTHING = np.zeros(0, dtype=np.int64)


class Rounds:
    """The rounds of one rank, prepared one after another. It keeps the examples of an unfinished batch between them."""

    def __init__(
        self,
        reader: RowGroupReader,
        examples: Examples,
        limit: BatchLimit,
        ahead: int,
        rank: int,
        world_size: int,
        costs: np.ndarray | None = None,
    ) -> None:
        """Prepare the first round.

        Args:
            reader: Reads row groups.
            examples: All examples.
            limit: How much a batch holds.
            ahead: Events that training needs after the inputs, as targets: 1, or 0 if inputs are targets.
            rank: Number of this rank.
            world_size: Number of ranks.
            costs: Cost of an example of each length, by which examples are dealt; None: by length.
        """
        self._reader = reader
        self._examples = examples
        self._limit = limit
        self._ahead = ahead
        self._rank = rank
        self._world_size = world_size
        self._costs = costs
        self._held = _Held(_NOTHING, _NOTHING, _NOTHING, _NOTHING)
        self.template: ExampleEvents | None = None

    def prepare(self, stretch: Stretch, lengths: np.ndarray) -> Outgoing:
        """Read this rank's row groups of a round, and return what it sends. Rounds are prepared in their order.

        Args:
            stretch: the examples of the round.
            lengths: (n,) their input events.

        Raises:
            UserError: A file cannot be read.
        """
        places = stretch.places
        held = self._held.followed_by(_Held(places.position, places.group, places.place, lengths))
        bounds = self._limit.runs(held.length, stretch.is_last)
        self._held = held.taken(slice(bounds[-1], None))
        batches = held.taken(slice(0, bounds[-1]))
        owner = owners(batches.length, bounds, self._world_size, self._costs)
        reader = stretch.readers[batches.group]
        if self.template is None:
            self.template = self._read_template(stretch)
        mine = np.flatnonzero(reader == self._rank)
        mine = mine[np.argsort(owner[mine], kind="stable")]
        counts = np.bincount(owner[mine], minlength=self._world_size).tolist()
        payload, sent = encode(self._events(batches.taken(mine)), counts)
        first = int(held.position[0])
        return Outgoing(payload, sent, self._arriving(stretch.order, first + bounds, batches, owner, reader))

    def decoded(self, received: Received) -> tuple[ExampleEvents, PackedHistories]:
        """Return the examples that arrived, as they are and as packed histories."""
        assert self.template is not None
        length = received.arriving.length
        arrived = decode(received.payload, received.arriving.counts, self._sizes(length), self.template)
        return arrived, arrived.as_histories(length + self._ahead)

    def _sizes(self, length: np.ndarray) -> np.ndarray:
        """Return the events that are sent of examples with these input events: none of an example without inputs."""
        return np.where(length > 0, length + self._ahead, 0)

    def _arriving(
        self, order: EpochOrder, bounds: np.ndarray, batches: _Held, owner: np.ndarray, reader: np.ndarray
    ) -> Arriving:
        mine = np.flatnonzero(owner == self._rank)
        by_reader = np.argsort(reader[mine], kind="stable")
        row = np.empty_like(mine)
        row[by_reader] = np.arange(mine.size)
        counts = np.bincount(reader[mine], minlength=self._world_size).tolist()
        length = batches.length[mine][by_reader]
        return Arriving(order.epoch, order.num_examples, bounds, batches.position[mine], row, length, counts)

    def _events(self, examples: _Held) -> ExampleEvents:
        """Read row groups, and return the events of examples in them."""
        if examples.group.size == 0:
            assert self.template is not None
            return self.template
        row, window = self._rows_at(examples.group, examples.place)
        chosen = Chosen(examples.position, examples.group, row, window, examples.length)
        packed, rows = read_rows(self._reader, chosen)
        longest = self._examples.max_history
        stops = packed.starts[rows] + packed.train_end[rows] - self._ahead - window * longest
        starts = np.maximum(packed.starts[rows], stops - longest)
        return cut_out(packed, rows, starts, self._sizes(examples.length), self._examples.ids(chosen))

    def _rows_at(self, groups: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (row within its row group, window) of examples."""
        if not self._examples.windows:
            return places, np.zeros_like(places)
        numbers, (which,) = unique_ids(groups)
        histories = self._reader.read(numbers)
        last_is_input = 1 - self._ahead
        tables = [windows_of(histories[int(g)].train_end + last_is_input, self._examples.max_history) for g in numbers]
        at = np.cumsum([0, *(rows.size for rows, _ in tables)])[which] + places
        return np.concatenate([rows for rows, _ in tables])[at], np.concatenate([w for _, w in tables])[at]

    def _read_template(self, stretch: Stretch) -> ExampleEvents:
        """Return no examples, with the columns of this dataset.

        It reads a row group that this rank reads anyway, if there is one.
        """
        own = stretch.places.group[stretch.readers[stretch.places.group] == self._rank]
        if own.size == 0:
            own = np.append(np.flatnonzero(stretch.readers == self._rank), 0)
        group = int(own[0])
        return cut_out(self._reader.read([group])[group], _NOTHING, _NOTHING, _NOTHING, _NOTHING)
