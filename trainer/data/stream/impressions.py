"""Batches for ranking: one history, and beside it all the impressions of the split that its user was shown.

An example is a row: it is trained once per epoch with all of its training impressions, or, by days, with those of the day. Its
history reaches up to the last of them, and as far back before the first as scores look (models.ranking.reach), so that no
impression misses an event that its score depends on. The invariant: an impression sees the events strictly before it
(history_end), and the same ones of them whichever other impressions are gathered with it, in training as when it is held out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch

from models.attention.candidates import lay_out_candidates
from models.batches.history_batch import as_tensor
from models.batches.jagged import layout_of
from models.features.items import Catalogue
from models.features.time import Earlier
from models.features.unique import distinct_ids
from models.ranking.batch import RankingBatch, Told, with_inputs
from models.ranking.micro_batches import with_cuts
from models.ranking.reach import Reach
from trainer.data.dataset.splits import Split
from trainer.data.stream.columns import Column, slice_all, stretches, take_all, zero_like
from trainer.data.stream.days import Calendar, shown_between
from trainer.data.stream.examples import Chosen, Examples
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.held_out import Deal, bounds_of
from trainer.data.stream.order import Position
from trainer.data.stream.row_groups import PackedHistories, RowGroupReader
from trainer.data.stream.shares import EMPTY_ROW, PackedStep, Step, packed_steps


@dataclass(frozen=True)
class Candidates:
    """Impressions of histories: history b owns those from offsets[b] to offsets[b + 1].

    items: (M,) int32; times: (M,) int64; history_end: (M,) int64, of the history's events that were gathered; labels: (M,) float32
    each; features: an entry per impression; place: (M,) int64, its number among all impressions of its row.
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    history_end: np.ndarray
    place: np.ndarray
    labels: Mapping[str, np.ndarray]
    features: Mapping[str, Column]

    def sliced(self, start: int, stop: int) -> "Candidates":
        """Those of the histories start .. stop - 1."""
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
    """Histories one after another with their candidates: history b owns the events from offsets[b] to offsets[b + 1].

    row_ids: (B,) int64; items: (N,) int32; times: (N,) int64, features and user_features where the reader was asked for them.
    earlier: the event before the first one that was gathered of each history, where there are times.
    """

    row_ids: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    candidates: Candidates
    times: np.ndarray | None = None
    features: Mapping[str, Column] = field(default_factory=dict)
    user_features: Mapping[str, Column] = field(default_factory=dict)
    earlier: Earlier | None = None

    def sliced(self, start: int, stop: int) -> "JaggedImpressions":
        """Histories start .. stop - 1: views."""
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
        """One empty history without candidates in the place of none, so that a rank without a share takes part."""
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
    """Training steps from any position on, as trainer.data.stream.histories.TrainStream; `reader` reads impressions too.

    A row without training impressions is an example with an empty history. micro_batch_tokens: the events and impressions of the
    pieces that each batch is cut into, at most. calendar: where the examples are rows on a day, which days these are.
    """

    reader: RowGroupReader
    batches: GlobalBatches
    reach: Reach
    catalogue: Catalogue
    micro_batch_tokens: int | None = None
    calendar: Calendar | None = None

    def steps(self, start: Position, num_epochs: int) -> Iterator[Step[RankingBatch]]:
        """Every step from `start` to the end of epoch `num_epochs - 1`; the same number on every rank."""
        for packed in self.packed(start, num_epochs):
            batch = ranking_batch(packed.share, self.catalogue, self.reach)
            batch = with_cuts(batch, self.micro_batch_tokens)
            yield Step(batch, packed.epoch, packed.before, packed.after)

    def packed(self, start: Position, num_epochs: int) -> Iterator[PackedStep[JaggedImpressions]]:
        """The same steps as packed arrays. A share may be empty."""
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
    """B users that have impressions in the split, all of them in it. row_ids: (B,) int64; users: as in the logs.

    place: (M,) int64, the number of each candidate among the impressions of its row.
    """

    batch: RankingBatch
    row_ids: np.ndarray
    users: pa.Array
    place: np.ndarray

    def to(self, device: torch.device) -> "HeldOutImpressionsBatch":
        """The batch on the device; what is scored afterwards stays on the host."""
        return replace(self, batch=self.batch.to(device))


@dataclass(frozen=True)
class HeldOutImpressions:
    """The held-out impressions of a dataset as one rank sees them: over all ranks, each impression of the split exactly once.

    shown: in the place of a split, the moments between which they were shown, the second one not included.
    """

    deal: Deal
    catalogue: Catalogue
    split: Split
    reach: Reach
    shown: tuple[int, int] | None = None

    def num_batches(self) -> int:
        """The same on every rank."""
        return self.deal.num_batches()

    def batches(self) -> Iterator[HeldOutImpressionsBatch]:
        """The same number on every rank, the last ones with a single empty history."""
        for packed, row_ids, rows in self.deal.batches():
            assert packed.impressions is not None
            if self.shown is not None:
                low, high = shown_on(packed, np.arange(packed.starts.size), *self.shown)
            else:
                low, high = bounds_of(packed, self.split, packed.impressions.ends - packed.impressions.starts)
            rows = rows[high[rows] > low[rows]]
            found = gather_impressions(packed, rows, low[rows], high[rows], row_ids[rows], self.reach)
            users = packed.users.take(pa.array(rows)) if packed.users is not None else pa.nulls(rows.size)
            yield HeldOutImpressionsBatch(
                ranking_batch(found, self.catalogue, self.reach), found.row_ids, users, found.candidates.place
            )


def shown_on(
    packed: PackedHistories, rows: np.ndarray, begin: np.ndarray | int, end: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Which impressions of the rows were shown in [begin, end): (first, first after) of each row."""
    shown = packed.impressions
    assert shown is not None
    return shown_between(shown.times, shown.starts[rows], shown.ends[rows], begin, end)


def impression_examples(reader: RowGroupReader, num_impressions: int, max_history: int) -> Examples:
    """Every row is one example. num_impressions: of the dataset, to choose sizes of buffers by."""
    num_rows = max(1, sum(reader.group_rows))
    typical = max(1, (reader.num_events + num_impressions) // num_rows)
    return Examples(reader.group_rows, reader.first_rows, max_history, typical)


def gather_impressions(
    packed: PackedHistories, rows: np.ndarray, low: np.ndarray, high: np.ndarray, row_ids: np.ndarray, reach: Reach
) -> JaggedImpressions:
    """Return the impressions low .. high - 1 of each row with the history that their scores depend on.

    Impressions of a row ascend in time, so the first needs the oldest events and the last sees most.
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


def _events_before(times: np.ndarray, starts: np.ndarray, begin: np.ndarray) -> Earlier:
    """Return the event before event `begin` of each row; starts: the first event of each row."""
    exists, before = begin > 0, np.zeros_like(begin)
    before[exists] = times[(starts + begin - 1)[exists]]
    return Earlier(exists, before)


def ranking_batch(found: JaggedImpressions, catalogue: Catalogue, reach: Reach) -> RankingBatch:
    """Return what the model is given of gathered impressions; an empty history if there is none at all."""
    if found.row_ids.size == 0:
        found = found.with_an_empty_one()
    candidates = found.candidates
    lookup, (history, candidate) = distinct_ids(found.items, candidates.items)
    counts = np.diff(candidates.offsets)
    batch = RankingBatch(
        row_ids=as_tensor(found.row_ids),
        layout=layout_of(found.offsets),
        candidate_layout=lay_out_candidates(found.offsets, candidates.offsets, candidates.history_end, reach.attended),
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
    told = Told(found.features, found.user_features, candidates.features, found.times, found.earlier)
    return with_inputs(batch, catalogue, told)
