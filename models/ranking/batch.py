"""What a ranking model is given for one step: jagged histories, and beside each the candidates that were shown to its user.

Shapes: B histories, N events of histories, M candidates, U looked-up ids.
The invariant: candidate m may see event j of its history (counted from the start of what the batch has of it) if and only if
j < history_end[m]; these are the events strictly before it. So a history is encoded once for all of its candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from models.attention.candidates import CandidateLayout
from models.batches.history_batch import as_tensor, moved
from models.batches.jagged import JaggedLayout
from models.features.inputs import NO_INPUTS
from models.features.items import Catalogue, ItemRequest
from models.features.time import Clock, Earlier, seconds_since_start, time_rows, time_rows_after
from models.features.values import ValueColumn


@dataclass(frozen=True)
class RankingCut:
    """A piece of a batch, as pairs (first, one past the last): of its histories, events and candidates; and the layouts of both.

    values: the same of the values of each feature, by "events.NAME", "users.NAME" or "candidates.NAME".
    """

    histories: tuple[int, int]
    events: tuple[int, int]
    candidates: tuple[int, int]
    values: Mapping[str, tuple[int, int]]
    layout: JaggedLayout
    candidate_layout: CandidateLayout

    def to(self, device: torch.device) -> "RankingCut":
        return replace(self, layout=self.layout.to(device), candidate_layout=self.candidate_layout.to(device))


@dataclass(frozen=True)
class RankingBatch:
    """row_ids: (B,) int64, the ids of the examples; layout: of the events of histories; candidate_layout: which of them
    candidates see.

    lookup_ids: (U,) int64, every item of histories and candidates once; items: what has to be looked up for them, and for features
    of events, users and candidates; history_index: (N,) int64, candidate_index: (M,) int64, into lookup_ids.
    candidate_offsets: (B + 1,) int64: history b owns the candidates from candidate_offsets[b] to candidate_offsets[b + 1], in the
    order in which they were shown; history_of: (M,) int64, the same the other way round. candidate_ids, history_end: (M,) int64;
    shown_at: (M,) int64, in the unit of the logs; labels by name: (M,) float32, all of the logs.
    times: (N,) int64, seconds from the first event of each history in the batch to each of its events; candidate_times: (M,) int64,
    the same to when each candidate was shown, below 0 for one before all of them, 0 without any; time_rows, candidate_time_rows:
    by part of the time (N,), (M,) int64. All of these are there only if the model looks at times. cuts: the pieces that are
    computed one after another (models.ranking.micro_batches), none if all is computed at once.
    """

    row_ids: Tensor
    layout: JaggedLayout
    candidate_layout: CandidateLayout
    lookup_ids: Tensor
    items: ItemRequest
    history_index: Tensor
    candidate_offsets: Tensor
    history_of: Tensor
    candidate_index: Tensor
    candidate_ids: Tensor
    shown_at: Tensor
    history_end: Tensor
    labels: Mapping[str, Tensor]
    times: Tensor | None = None
    candidate_times: Tensor | None = None
    time_rows: Mapping[str, Tensor] = field(default_factory=dict)
    candidate_time_rows: Mapping[str, Tensor] = field(default_factory=dict)
    cuts: tuple[RankingCut, ...] = ()

    @property
    def num_targets(self) -> int:
        """What the loss is a sum over: candidates."""
        return self.candidate_ids.numel()

    @property
    def num_histories(self) -> int:
        """Empty ones too."""
        return self.row_ids.numel()

    def to(self, device: torch.device) -> "RankingBatch":
        return self if device.type == "cpu" else moved(self, device)


@dataclass(frozen=True)
class Told:
    """Columns on the host with what is known besides items: by feature, an entry per event, per history, per candidate.

    times: (N,) int64, of events in the unit of the logs; none where the model does not look at times. earlier: the events before
    those that the batch has of each history, none if it has all.
    """

    events: Mapping[str, ValueColumn] = field(default_factory=dict)
    users: Mapping[str, ValueColumn] = field(default_factory=dict)
    candidates: Mapping[str, ValueColumn] = field(default_factory=dict)
    times: np.ndarray | None = None
    earlier: Earlier | None = None


def with_inputs(batch: RankingBatch, catalogue: Catalogue, told: Told) -> RankingBatch:
    """A batch on the host with what the model is told besides items."""
    inputs = catalogue.inputs
    if inputs == NO_INPUTS:
        return batch
    batch = replace(batch, items=catalogue.beside(batch.items, told.events, told.users, told.candidates))
    if inputs.clock is None:
        return batch
    assert told.times is not None
    return _with_times(batch, inputs.clock, told.times, told.earlier)


def _with_times(batch: RankingBatch, clock: Clock, times: np.ndarray, earlier: Earlier | None) -> RankingBatch:
    offsets, history_of, shown_at = (t.numpy() for t in (batch.layout.offsets, batch.history_of, batch.shown_at))
    seen = batch.history_end.numpy()
    starts, lengths = offsets[:-1][history_of], np.diff(offsets)[history_of]
    # One event more, so that there is something to point at for candidates of histories without any.
    padded = np.append(times, 0)
    seconds = shown_at // clock.ticks_per_second - padded[starts] // clock.ticks_per_second
    previous = padded[np.where(seen > 0, starts + seen - 1, times.size)]
    of_candidates = time_rows_after(clock, shown_at, previous, seen == 0)
    return replace(
        batch,
        times=torch.from_numpy(seconds_since_start(clock, times, times, offsets)),
        candidate_times=torch.from_numpy(np.where(lengths > 0, seconds, 0)),
        time_rows={name: as_tensor(found) for name, found in time_rows(clock, times, offsets, earlier).items()},
        candidate_time_rows={name: as_tensor(found) for name, found in of_candidates.items()},
    )
