"""Batches for ranking: one history, with all impressions of the split that its user was shown.

An example is a row. It is trained once per epoch with all of its training impressions, or in daily training with those
of the day. Its history ends with the last of them. It starts as far before the first one as scores depend on events
(models.ranking.reach), so every impression has all events that its score depends on. The invariant: an impression sees
the events strictly before it (history_end). They are the same for any other impressions gathered with it, in training
and when it is held out.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch

from models.attention.candidates import lay_out_candidates
from models.batches.history_batch import as_tensor
from models.batches.jagged import layout_of
from models.features.catalogue import Catalogue
from models.features.time import Earlier
from models.features.unique import unique_ids
from models.ranking.batch import ContextColumns, RankingBatch, with_inputs
from models.ranking.micro_batches import with_cuts
from models.ranking.reach import Reach
from trainer.data.dataset.splits import Split
from trainer.data.stream.columns import Column, slice_all, stretches, take_all, zero_like
from trainer.data.stream.days import Calendar, shown_between
from trainer.data.stream.examples import Chosen, Examples
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.held_out import Deal, bounds_of
from trainer.data.stream.order import Position
from trainer.data.stream.packed import PackedHistories
from trainer.data.stream.prefetch import Prefetch
from trainer.data.stream.row_groups import RowGroupReader
from trainer.data.stream.shares import EMPTY_ROW, PackedStep, Step, packed_steps


@dataclass(frozen=True)
class Candidates:
    """Impressions of histories: history b owns those from offsets[b] to offsets[b + 1]."""

    # (B + 1,) int64.
    offsets: np.ndarray
    # (M,) int32.
    items: np.ndarray
    # (M,) int64.
    times: np.ndarray
    # (M,) int64, number of gathered events of the history before the impression.
    history_end: np.ndarray
    # (M,) int64, number among all impressions of its row.
    place: np.ndarray
    # (M,) float32 for each label.
    labels: Mapping[str, np.ndarray]
    # Features, an entry per impression.
    features: Mapping[str, Column]

    def sliced(self, start: int, stop: int) -> "Candidates":
        """Return those of the histories start .. stop - 1."""
        first, last = (int(place) for place in self.offsets[[start, stop]])
        return Candidates(
            self.offsets[start : stop + 1] - first,
            self.items[first:last],
            self.times[first:last],
            self.history_end[first:last],
            self.place[first:last],
            {name: column[first:last] for name, column in self.labels.items()},
            slice_all(self.features, first, last),
        )


@dataclass(frozen=True)
class JaggedImpressions:
    """Histories with their candidates, packed: history b owns the events from offsets[b] to offsets[b + 1]."""

    # (B,) int64 ids of the examples.
    row_ids: np.ndarray
    # (B + 1,) int64.
    offsets: np.ndarray
    # (N,) int32.
    items: np.ndarray
    # Impressions of the histories.
    candidates: Candidates
    # (N,) int64 times, if the reader reads them.
    times: np.ndarray | None = None
    # Features of the events, if the reader reads them.
    features: Mapping[str, Column] = field(default_factory=dict)
    # Features of the users, an entry per history.
    user_features: Mapping[str, Column] = field(default_factory=dict)
    # The event before the first gathered one of each history, if there are times.
    earlier: Earlier | None = None

    def sliced(self, start: int, stop: int) -> "JaggedImpressions":
        """Return histories start .. stop - 1: views."""
        first, last = (int(place) for place in self.offsets[[start, stop]])
        return JaggedImpressions(
            self.row_ids[start:stop],
            self.offsets[start : stop + 1] - first,
            self.items[first:last],
            self.candidates.sliced(start, stop),
            None if self.times is None else self.times[first:last],
            slice_all(self.features, first, last),
            slice_all(self.user_features, start, stop),
            None if self.earlier is None else self.earlier.sliced(start, stop),
        )

    def with_an_empty_one(self) -> "JaggedImpressions":
        """Replace an empty share by one empty history without candidates, so that a rank without a share takes part."""
        nothing = np.zeros(2, dtype=np.int64)
        return replace(
            self,
            row_ids=np.asarray([EMPTY_ROW]),
            offsets=nothing,
            candidates=replace(self.candidates, offsets=nothing),
            user_features={name: zero_like(column) for name, column in self.user_features.items()},
            earlier=None,
        )


@dataclass(frozen=True)
class ImpressionStream:
    """Training steps from any position on, as trainer.data.stream.histories.TrainStream.

    A row without training impressions is an example with an empty history.
    """

    # Reads row groups with impressions.
    reader: RowGroupReader
    # The global batches.
    batches: GlobalBatches
    # How far back scores depend on events.
    reach: Reach
    # The catalogue.
    catalogue: Catalogue
    # Most events and impressions of a micro-batch.
    micro_batch_tokens: int | None = None
    # Days, in daily training.
    calendar: Calendar | None = None

    def steps(self, start: Position, num_epochs: int) -> Iterator[Step[RankingBatch]]:
        """Yield every step from `start` to the end of epoch `num_epochs - 1`, the same number on every rank."""
        for packed in self.packed(start, num_epochs):
            batch = ranking_batch(packed.share, self.catalogue, self.reach)
            batch = with_cuts(batch, self.micro_batch_tokens)
            yield Step(batch, packed.epoch, packed.before, packed.after)

    @contextmanager
    def read_ahead(self, start: Position, num_epochs: int) -> Iterator[Iterable[Step[RankingBatch]]]:
        """Yield the same steps, read in the background."""
        with Prefetch(self.steps(start, num_epochs)) as steps:
            yield steps

    def packed(self, start: Position, num_epochs: int) -> Iterator[PackedStep[JaggedImpressions]]:
        """Yield the same steps as packed arrays. A share may be empty."""
        return packed_steps(self.reader, self.batches, self._gather, start, num_epochs)

    def _gather(self, packed: PackedHistories, rows: np.ndarray, chosen: Chosen) -> JaggedImpressions:
        high = packed.train_end[rows]
        low = np.zeros_like(high)
        if self.calendar is not None:
            low, high = shown_on(packed, rows, *self.calendar.bounds(chosen.window))
        row_ids = self.batches.examples.ids(chosen)
        return gather_impressions(packed, rows, low, high, row_ids, self.reach)


@dataclass(frozen=True)
class HeldOutImpressionsBatch:
    """B users that have impressions in the split, with all of these."""

    # Batch for the model.
    batch: RankingBatch
    # (B,) int64 rows in the dataset.
    row_ids: np.ndarray
    # (B,) raw ids of the users, or nulls.
    users: pa.Array
    # (M,) int64, number of each candidate among the impressions of its row.
    place: np.ndarray
    # (B,) int64, impressions of the user in the training part.
    train_impressions: np.ndarray
    # (M,) int64, time since the last event before each impression, -1 without one; None if the reader reads no times.
    since_last: np.ndarray | None
    # Features of the users, those of the model and others that the reader reads.
    user_features: Mapping[str, Column]
    # Features of the impressions, likewise.
    features: Mapping[str, Column]

    def to(self, device: torch.device) -> "HeldOutImpressionsBatch":
        """Move the batch to the device; the arrays that are used after scoring stay on the host."""
        return replace(self, batch=self.batch.to(device))


@dataclass(frozen=True)
class HeldOutImpressions:
    """The held-out impressions of a dataset, seen by one rank. All ranks together cover each impression of the split once."""

    # Assignment of rows to ranks.
    deal: Deal
    # The catalogue.
    catalogue: Catalogue
    # The split to evaluate.
    split: Split
    # How far back scores depend on events.
    reach: Reach
    # Period that replaces the split: first moment, and first moment after it.
    shown: tuple[int, int] | None = None

    def num_batches(self) -> int:
        """Return the number of batches, which is the same on every rank."""
        return self.deal.num_batches()

    def batches(self) -> Iterator[HeldOutImpressionsBatch]:
        """Yield the batches, the same number on every rank; the last ones of a rank may be a single empty history."""
        for packed, row_ids, rows in self.deal.batches():
            assert packed.impressions is not None
            if self.shown is not None:
                low, high = shown_on(packed, np.arange(packed.starts.size), *self.shown)
            else:
                low, high = bounds_of(packed, self.split, packed.impressions.ends - packed.impressions.starts)
            rows = rows[high[rows] > low[rows]]
            gathered = gather_impressions(packed, rows, low[rows], high[rows], row_ids[rows], self.reach)
            users = packed.users.take(pa.array(rows)) if packed.users is not None else pa.nulls(rows.size)
            yield HeldOutImpressionsBatch(
                ranking_batch(gathered, self.catalogue, self.reach),
                gathered.row_ids,
                users,
                gathered.candidates.place,
                packed.train_end[rows],
                _since_last_event(gathered),
                gathered.user_features,
                gathered.candidates.features,
            )


def shown_on(
    packed: PackedHistories, rows: np.ndarray, begin: np.ndarray | int, end: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of the rows the impressions shown in [begin, end): (first, first after)."""
    shown = packed.impressions
    assert shown is not None
    return shown_between(shown.times, shown.starts[rows], shown.ends[rows], begin, end)


def impression_examples(reader: RowGroupReader, num_impressions: int, max_history: int) -> Examples:
    """Return the examples of a ranker without daily training: every row is one.

    Args:
        reader: reads row groups.
        num_impressions: impressions of the dataset, for the sizes of buffers.
        max_history: most events of a history.
    """
    num_rows = max(1, sum(reader.group_rows))
    typical = max(1, (reader.num_events + num_impressions) // num_rows)
    return Examples(reader.group_rows, reader.first_rows, max_history, typical)


def gather_impressions(
    packed: PackedHistories, rows: np.ndarray, low: np.ndarray, high: np.ndarray, row_ids: np.ndarray, reach: Reach
) -> JaggedImpressions:
    """Return the impressions low .. high - 1 of each row, with the history that their scores depend on.

    Impressions of a row ascend in time, so the first one needs the oldest events and the last one sees most.

    Args:
        packed: packed row groups.
        rows: the rows.
        low: first impression of each row.
        high: end of the impressions of each row.
        row_ids: id of each example.
        reach: how far back scores depend on events.
    """
    shown = packed.impressions
    assert shown is not None
    first, last = shown.starts[rows] + low, shown.starts[rows] + high
    begin, end = np.zeros_like(first), np.zeros_like(first)
    some = last > first
    begin[some] = np.maximum(0, shown.history_end[first[some]] - reach.receptive)
    end[some] = shown.history_end[last[some] - 1]
    events, offsets = stretches(packed.starts[rows] + begin, packed.starts[rows] + end)
    places, candidate_offsets = stretches(first, last)
    counts = last - first
    candidates = Candidates(
        candidate_offsets,
        shown.items.take(places),
        shown.times.take(places),
        shown.history_end.take(places) - np.repeat(begin, counts),
        places - np.repeat(shown.starts[rows], counts),
        {name: column.take(places).astype(np.float32, copy=False) for name, column in shown.labels.items()},
        take_all(shown.features, places),
    )
    return JaggedImpressions(
        row_ids,
        offsets,
        packed.items.take(events),
        candidates,
        None if packed.times is None else packed.times.take(events),
        take_all(packed.features, events),
        take_all(packed.user_features, rows),
        None if packed.times is None else _events_before(packed.times, packed.starts[rows], begin),
    )


def _since_last_event(gathered: JaggedImpressions) -> np.ndarray | None:
    """Return the time from the last event before each candidate to the candidate, (M,) int64; -1 without an event before it."""
    if gathered.times is None:
        return None
    candidates = gathered.candidates
    last = np.repeat(gathered.offsets[:-1], np.diff(candidates.offsets)) + candidates.history_end - 1
    since = np.full(candidates.times.size, -1, dtype=np.int64)
    some = candidates.history_end > 0
    since[some] = candidates.times[some] - gathered.times[last[some]]
    return since


def _events_before(times: np.ndarray, starts: np.ndarray, begin: np.ndarray) -> Earlier:
    """Return the event before event `begin` of each row. `starts` is the first event of each row."""
    exists = begin > 0
    before = np.zeros_like(begin)
    before[exists] = times[(starts + begin - 1)[exists]]
    return Earlier(exists, before)


def ranking_batch(gathered: JaggedImpressions, catalogue: Catalogue, reach: Reach) -> RankingBatch:
    """Return the batch that the model receives, with an empty history if there is none."""
    if gathered.row_ids.size == 0:
        gathered = gathered.with_an_empty_one()
    candidates = gathered.candidates
    lookup, (history, candidate) = unique_ids(gathered.items, candidates.items)
    counts = np.diff(candidates.offsets)
    batch = RankingBatch(
        row_ids=as_tensor(gathered.row_ids),
        layout=layout_of(gathered.offsets),
        candidate_layout=lay_out_candidates(
            gathered.offsets, candidates.offsets, candidates.history_end, reach.attended
        ),
        lookup_ids=as_tensor(lookup),
        items=catalogue.request(lookup),
        history_index=as_tensor(history),
        candidate_offsets=as_tensor(candidates.offsets),
        history_of=torch.from_numpy(np.repeat(np.arange(counts.size), counts)),
        candidate_index=as_tensor(candidate),
        candidate_ids=as_tensor(candidates.items.astype(np.int64)),
        shown_at=as_tensor(candidates.times),
        history_end=as_tensor(candidates.history_end),
        labels={name: as_tensor(column) for name, column in candidates.labels.items()},
    )
    told = ContextColumns(
        gathered.features, gathered.user_features, candidates.features, gathered.times, gathered.earlier
    )
    return with_inputs(batch, catalogue, told)
