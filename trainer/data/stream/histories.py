"""Training batches of one rank: Arrow row groups in the global order, as jagged batches for the model.

Inputs and targets of a block of steps are gathered from the same positions, shifted by one. Each step's share is a view
of them. So no Python loop runs over rows or events.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from models.batches.history_batch import HistoryBatch, as_tensor, build_batch, with_inputs
from models.batches.micro_batches import with_cuts
from models.config import NextItemConfig
from models.encoders.encoder import lay_out_parts
from models.features.catalogue import Catalogue
from models.objectives.config import SampledObjectiveConfig
from trainer.data.dataset.manifest import UNKNOWN_ID
from trainer.data.stream.columns import Column, slice_all, stretches, take_all, zero_like
from trainer.data.stream.examples import Chosen, Examples
from trainer.data.stream.exchange.rounds import Received, Rounds, stretches_of
from trainer.data.stream.exchange.steps import ExchangedSteps
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.masking import masked_events, times_before
from trainer.data.stream.negatives import NOTHING, NegativeDraws
from trainer.data.stream.order import Position
from trainer.data.stream.packed import PackedHistories
from trainer.data.stream.prefetch import Prefetch
from trainer.data.stream.row_groups import RowGroupReader
from trainer.data.stream.shares import EMPTY_ROW, PackedStep, Step, packed_steps, steps_of_chunk
from trainer.data.stream.stochastic_length import kept_events, shortened_length


@dataclass(frozen=True)
class JaggedHistories:
    """Training histories, packed: history b owns the entries from offsets[b] to offsets[b + 1]."""

    # (B,) int64 ids of the examples.
    row_ids: np.ndarray
    # (B + 1,) int64.
    offsets: np.ndarray
    # (N,) int32 input events.
    items: np.ndarray
    # (N,) int32 target of each input event: the event after it, or the event itself for masked items.
    targets: np.ndarray
    # (N,) int64 times, if the reader reads them.
    times: np.ndarray | None = None
    # (N,) int64 times of the targets.
    target_times: np.ndarray | None = None
    # Features of the input events, if the reader reads them.
    features: Mapping[str, Column] = field(default_factory=dict)
    # Features of the users, an entry per history.
    user_features: Mapping[str, Column] = field(default_factory=dict)
    # (N,) bool, for models that restore masked items.
    masked: np.ndarray | None = None

    def sliced(self, start: int, stop: int) -> "JaggedHistories":
        """Return histories start .. stop - 1: views."""
        first, last = (int(place) for place in self.offsets[[start, stop]])
        return JaggedHistories(
            self.row_ids[start:stop],
            self.offsets[start : stop + 1] - first,
            self.items[first:last],
            self.targets[first:last],
            None if self.times is None else self.times[first:last],
            None if self.target_times is None else self.target_times[first:last],
            slice_all(self.features, first, last),
            slice_all(self.user_features, start, stop),
        )

    def with_an_empty_one(self) -> "JaggedHistories":
        """Replace an empty share by one empty history, so that a rank without a share takes part."""
        return replace(
            self,
            row_ids=np.asarray([EMPTY_ROW]),
            offsets=np.zeros(2, dtype=np.int64),
            user_features={name: zero_like(column) for name, column in self.user_features.items()},
        )

    def with_masks(self, masked: np.ndarray) -> "JaggedHistories":
        """Remove the items of masked events (N,), and leave these as the only targets."""
        items = np.where(masked, UNKNOWN_ID, self.items)
        targets = np.where(masked, self.targets, UNKNOWN_ID)
        return replace(self, items=items, targets=targets, masked=masked)

    def kept(self, is_kept: np.ndarray) -> "JaggedHistories":
        """Return the histories with these events only, (N,) bool. The target of an event stays the same."""
        places = np.flatnonzero(is_kept)
        before = np.concatenate(([0], np.cumsum(is_kept)))
        times, target_times = (None if t is None else t[places] for t in (self.times, self.target_times))
        return replace(
            self,
            offsets=before[self.offsets],
            items=self.items[places],
            targets=self.targets[places],
            times=times,
            target_times=target_times,
            features=take_all(self.features, places),
        )

    def with_targets_of_newest(self, number: int) -> "JaggedHistories":
        """Leave only the targets of the `number` newest events of each history."""
        from_end = np.repeat(self.offsets[1:], np.diff(self.offsets)) - np.arange(self.items.size)
        return replace(self, targets=np.where(from_end <= number, self.targets, UNKNOWN_ID))


@dataclass(frozen=True)
class TrainStream:
    """Training steps from any position on. Pure data: iteration holds the only state, so all iterations agree."""

    # Reads row groups.
    reader: RowGroupReader
    # The global batches.
    batches: GlobalBatches
    # Settings of the model.
    model: NextItemConfig
    # The catalogue.
    catalogue: Catalogue
    # Most input events of a micro-batch.
    micro_batch_tokens: int | None = None
    # Training events of every id, for objectives that draw by them (trainer.data.stream.negatives).
    train_events: np.ndarray | None = None
    # The first id of the items that this rank scores, and one past the last, if ranks divide the catalogue.
    share: tuple[int, int] | None = None

    def steps(self, start: Position, num_epochs: int) -> Iterator[Step[HistoryBatch]]:
        """Yield every step from `start` to the end of epoch `num_epochs - 1`, the same number on every rank."""
        return map(self._step, self.packed(start, num_epochs))

    def _step(self, packed: PackedStep[JaggedHistories]) -> Step[HistoryBatch]:
        batch = with_cuts(self._batch(packed), self.micro_batch_tokens)
        # Laid out here, in the reader's thread, for the encoder.
        for layout in [cut.layout for cut in batch.cuts] or [batch.layout]:
            lay_out_parts(layout, self.model.encoder)
        return Step(batch, packed.epoch, packed.before, packed.after)

    @contextmanager
    def read_ahead(self, start: Position, num_epochs: int) -> Iterator[Iterable[Step[HistoryBatch]]]:
        """Yield the same steps, read in the background. If ranks exchange examples, each `next` is collective."""
        if self.batches.lengths is None:
            with Prefetch(self.steps(start, num_epochs)) as steps:
                yield steps
            return
        examples = self.batches.examples
        assert isinstance(examples, Examples)
        ahead = int(not self.model.masks_items)
        rank, world_size = self.batches.rank, self.batches.world_size
        costs = self.batches.costs
        rounds = Rounds(self.reader, examples, self.batches.limit, ahead, rank, world_size, costs)
        stretches = stretches_of(self.batches, self.reader.group_events, start, num_epochs)

        def build(received: Received) -> Iterator[Step[HistoryBatch]]:
            return map(self._step, self._exchanged(received, rounds))

        with ExchangedSteps(self.batches.lengths, stretches, rounds.prepare, build) as exchanged:
            yield exchanged

    def _exchanged(self, received: Received, rounds: Rounds) -> Iterator[PackedStep[JaggedHistories]]:
        """Yield the steps of a round from the examples that arrived."""
        arrived, packed = rounds.decoded(received)
        return steps_of_chunk(
            received.arriving.chunk,
            packed,
            received.arriving.row,
            lambda histories, rows, chosen: replace(
                self._gather(histories, rows, chosen), row_ids=arrived.row_ids[rows]
            ),
            self.batches.examples.typical_events,
        )

    def packed(self, start: Position, num_epochs: int) -> Iterator[PackedStep[JaggedHistories]]:
        """Yield the same steps as packed arrays, before any look-up or layout. A share may have no history."""
        return packed_steps(self.reader, self.batches, self._gather, start, num_epochs)

    def _gather(self, packed: PackedHistories, rows: np.ndarray, chosen: Chosen) -> JaggedHistories:
        # The last event of a history is a target only, unless masked events are. Windows are counted from the most recent end.
        ahead = int(not self.model.masks_items)
        stops = packed.starts[rows] + packed.train_end[rows] - ahead - chosen.window * self.model.max_history
        starts = np.maximum(packed.starts[rows], stops - self.model.max_history)
        places, offsets = stretches(starts, np.maximum(stops, starts))
        items = packed.items.take(places)
        features = take_all(packed.features, places)
        times = target_times = None
        if packed.times is not None:
            times = packed.times.take(places)
            target_times = packed.times.take(places + ahead)
        places += ahead  # from inputs to their targets
        targets = packed.items.take(places)
        user_features = take_all(packed.user_features, rows)
        row_ids = self.batches.examples.ids(chosen)
        return JaggedHistories(row_ids, offsets, items, targets, times, target_times, features, user_features)

    def _batch(self, step: PackedStep[JaggedHistories]) -> HistoryBatch:
        histories = step.share
        if histories.row_ids.size == 0:
            histories = histories.with_an_empty_one()
        seed = self.batches.seed
        if self.model.stochastic_length is not None:
            shortened = shortened_length(self.model.max_history, self.model.stochastic_length)
            is_kept = kept_events(histories.row_ids, histories.offsets, shortened, seed, step.epoch)
            histories = histories.kept(is_kept)
        if self.model.masks_items:
            masking = self.model.masking
            masked = masked_events(histories.row_ids, histories.offsets, masking, seed, step.epoch)
            histories = histories.with_masks(masked)
        if self.model.encoder.num_newest is not None:
            histories = histories.with_targets_of_newest(self.model.encoder.num_newest)
        whole = self._draws is None
        negatives = NOTHING
        if self._draws is not None:
            negatives = self._draws.ahead(step.before, histories.targets, self.batches.rank)
        batch = build_batch(
            histories.row_ids,
            histories.offsets,
            histories.items,
            histories.targets,
            negatives,
            self.catalogue,
            whole,
            self.share,
        )
        times = histories.times
        if histories.masked is not None:
            batch = replace(batch, masked=as_tensor(histories.masked))
            if times is not None and not self.catalogue.inputs.has_request_time:
                times = times_before(times, histories.masked, histories.offsets)
        return with_inputs(
            batch,
            self.catalogue,
            histories.features,
            histories.user_features,
            times,
            histories.target_times,
        )

    @cached_property
    def _draws(self) -> NegativeDraws | None:
        objective = self.model.objective
        if not isinstance(objective, SampledObjectiveConfig):
            return None
        return NegativeDraws(objective, self.catalogue.num_known, self.batches.seed, self.train_events)
