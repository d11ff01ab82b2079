"""The input of a ranker for one step: jagged histories, and for each history the impressions of its user as candidates.

Shapes: B histories, N events of histories, M candidates, U looked-up ids.

The invariant: candidate m sees event j of its history (counted from the first event in the batch) if and only if j <
history_end[m]. These are the events strictly before it. So a history is encoded once for all of its candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from models import devices
from models.attention.candidates import CandidateLayout
from models.batches.history_batch import as_tensor
from models.batches.jagged import JaggedLayout
from models.batches.transfer import to_device
from models.features.catalogue import Catalogue
from models.features.inputs import NO_INPUTS
from models.features.request import ItemRequest
from models.features.time import Clock, Earlier, seconds_since_start, time_rows, time_rows_after
from models.features.values import ValueColumn


@dataclass(frozen=True)
class RankingCut:
    """A piece of a batch, as pairs (first, one past the last)."""

    histories: tuple[int, int]
    events: tuple[int, int]
    candidates: tuple[int, int]
    # bounds of the values of each feature, by "events.NAME", "users.NAME" or "candidates.NAME"
    values: Mapping[str, tuple[int, int]]
    layout: JaggedLayout  # of the events of the piece
    candidate_layout: CandidateLayout  # of its candidates


@dataclass(frozen=True)
class RankingBatch:
    """The input of one step. Fields about times are set only if the model uses times.

    History b owns the candidates candidate_offsets[b] .. candidate_offsets[b + 1] - 1, in the order of the impressions.
    """

    row_ids: Tensor  # (B,) int64, ids of the examples
    layout: JaggedLayout  # of the events of histories
    candidate_layout: CandidateLayout  # which of them the candidates see
    lookup_ids: Tensor  # (U,) int64, unique items of histories and candidates
    items: ItemRequest  # look-ups for them, and for the features of events, users and candidates
    history_index: Tensor  # (N,) int64 into lookup_ids
    candidate_offsets: Tensor  # (B + 1,) int64
    history_of: Tensor  # (M,) int64, the history of each candidate
    candidate_index: Tensor  # (M,) int64 into lookup_ids
    candidate_ids: Tensor  # (M,) int64
    shown_at: Tensor  # (M,) int64, in the unit of the logs
    history_end: Tensor  # (M,) int64, number of events before each candidate
    labels: Mapping[str, Tensor]  # (M,) float32 by name, all labels of the logs
    times: Tensor | None = None  # (N,) int64, seconds from the first event of each history in the batch
    # (M,) int64, the same for candidates: below 0 before all events, 0 without events
    candidate_times: Tensor | None = None
    time_rows: Mapping[str, Tensor] = field(default_factory=dict)  # (N,) int64 by part of the time
    candidate_time_rows: Mapping[str, Tensor] = field(default_factory=dict)  # (M,) int64 by part of the time
    # pieces that are computed one after another (models.ranking.micro_batches); empty: all at once
    cuts: tuple[RankingCut, ...] = ()

    @property
    def num_targets(self) -> int:
        """Return the number of candidates, over which the loss is a sum."""
        return self.candidate_ids.numel()

    @property
    def num_histories(self) -> int:
        """Return the number of histories, empty ones included."""
        return self.row_ids.numel()

    def to(self, device: torch.device) -> "RankingBatch":
        return self if devices.is_host(device) else to_device(self, device)


@dataclass(frozen=True)
class ContextColumns:
    """Columns of features on the host, with an entry per event, per history or per candidate."""

    events: Mapping[str, ValueColumn] = field(default_factory=dict)  # by feature
    users: Mapping[str, ValueColumn] = field(default_factory=dict)  # by feature
    candidates: Mapping[str, ValueColumn] = field(default_factory=dict)  # by feature
    times: np.ndarray | None = None  # (N,) int64, of events in the unit of the logs; None: the model uses no times
    earlier: Earlier | None = None  # the event before those of each history in the batch; None: the batch has all


def with_inputs(batch: RankingBatch, catalogue: Catalogue, columns: ContextColumns) -> RankingBatch:
    """Return a batch with the inputs of the model besides items. The batch is on the host."""
    inputs = catalogue.inputs
    if inputs == NO_INPUTS:
        return batch
    batch = replace(batch, items=catalogue.with_context(batch.items, columns.events, columns.users, columns.candidates))
    if inputs.clock is None:
        return batch
    assert columns.times is not None
    return _with_times(batch, inputs.clock, columns.times, columns.earlier)


def _with_times(batch: RankingBatch, clock: Clock, times: np.ndarray, earlier: Earlier | None) -> RankingBatch:
    offsets, history_of, shown_at = (t.numpy() for t in (batch.layout.offsets, batch.history_of, batch.shown_at))
    seen = batch.history_end.numpy()
    starts = offsets[:-1][history_of]
    lengths = np.diff(offsets)[history_of]
    # One more event, so that candidates of empty histories have an event to point at.
    padded = np.append(times, 0)
    seconds = shown_at // clock.ticks_per_second - padded[starts] // clock.ticks_per_second
    previous = padded[np.where(seen > 0, starts + seen - 1, times.size)]
    of_candidates = time_rows_after(clock, shown_at, previous, seen == 0)
    return replace(
        batch,
        times=torch.from_numpy(seconds_since_start(clock, times, times, offsets)),
        candidate_times=torch.from_numpy(np.where(lengths > 0, seconds, 0)),
        time_rows={name: as_tensor(rows_of) for name, rows_of in time_rows(clock, times, offsets, earlier).items()},
        candidate_time_rows={name: as_tensor(rows_of) for name, rows_of in of_candidates.items()},
    )
