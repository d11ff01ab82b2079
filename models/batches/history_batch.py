"""What a model is given for one step: jagged histories, and which table rows they need.

Shapes: B histories, N input events, U looked-up ids, C shared negatives.
Every id that a step needs is looked up once: vectors are asked for by `lookup_ids`, and everything else is an index
into them. So a batch sends no duplicates between ranks, and gradients of one id are summed before they travel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from models.batches.jagged import JaggedLayout, layout_of
from models.batches.merge_requests import with_items
from models.features.inputs import NO_INPUTS
from models.features.items import Catalogue, ItemRequest
from models.features.time import seconds_since_start, time_rows
from models.features.unique import distinct_ids, joined_ids
from models.features.values import ValueColumn

FIRST_ITEM = 1  # id 0 stands for unknown items: looked up in histories, never learned nor recommended

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Cut:
    """A piece of a batch, as pairs (first, one past the last): of its histories, events and targets; and the layout of its events.

    values: the same of the values of each feature of events and users, by "events.NAME" or "users.NAME".
    """

    histories: tuple[int, int]
    events: tuple[int, int]
    targets: tuple[int, int]
    values: Mapping[str, tuple[int, int]]
    layout: JaggedLayout

    def to(self, device: torch.device) -> "Cut":
        return replace(self, layout=self.layout.to(device))


@dataclass(frozen=True)
class HistoryBatch:
    """row_ids: (B,) int64, the ids of the examples; layout: of the input events.

    lookup_ids: (U,) int64, the items of the batch; items: what has to be looked up for them, and for features of events and
    users; history_index: (N,) int64 into lookup_ids. target_ids, target_index: (T,) int64, what is learned at the input events
    target_event (none: at every one, so that T is N), as id and as index into lookup_ids; empty when nothing is learned.
    num_candidates: the ids from 1 to below it are what a softmax over the whole catalogue compares. negative_ids, negative_index:
    (C,) int64, empty unless the objective samples; negative_log_q, target_log_q: (C,), (T,) float32, how likely a draw gives
    each, where scores are corrected for that. masked: (N,) bool, input events of which nothing is shown (their item is 0), where
    the model restores masked events.
    times: (N,) int64, seconds from the first event of each history in the batch to each of its events; request_times: the same to
    the moment at which the event after it was asked for, or `times` again where the model is not told; time_rows: by part of
    an event's time (N,) int64. All of these are there only if the model looks at times. cuts: the
    pieces that are encoded one after another (models.batches.micro_batches), none if all is encoded at once.
    """

    row_ids: Tensor
    layout: JaggedLayout
    lookup_ids: Tensor
    history_index: Tensor
    target_ids: Tensor
    target_index: Tensor
    negative_ids: Tensor
    negative_index: Tensor
    items: ItemRequest
    target_event: Tensor | None = None
    num_candidates: int = 0
    negative_log_q: Tensor | None = None
    target_log_q: Tensor | None = None
    masked: Tensor | None = None
    times: Tensor | None = None
    request_times: Tensor | None = None
    time_rows: Mapping[str, Tensor] = field(default_factory=dict)
    cuts: tuple[Cut, ...] = ()

    @property
    def num_targets(self) -> int:
        """What the loss is a sum over."""
        return self.target_ids.numel()

    def to(self, device: torch.device) -> "HistoryBatch":
        return self if device.type == "cpu" else moved(self, device)


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch with all it holds on the device; `batch` is a dataclass of mappings, tuples, what has `to`, and plain values."""

    def move(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: move(entry) for name, entry in value.items()}
        if isinstance(value, tuple):
            return tuple(move(entry) for entry in value)
        return value.to(device) if hasattr(value, "to") else value

    return type(batch)(**{entry.name: move(getattr(batch, entry.name)) for entry in fields(batch)})  # type: ignore[arg-type]


def build_batch(
    row_ids: np.ndarray,
    offsets: np.ndarray,
    history_ids: np.ndarray,
    target_ids: np.ndarray,
    negative_ids: np.ndarray,
    catalogue: Catalogue,
    whole_catalogue: bool,
) -> HistoryBatch:
    """Assemble a batch on the host from packed arrays: offsets (B + 1,), history_ids (N,), target_ids (N,) or (0,).

    `whole_catalogue`: whether the objective scores all items that the training part knows. Targets that it does not know are
    not learned.
    """
    learned = (target_ids >= FIRST_ITEM) & (target_ids < catalogue.num_known)
    target_event = None
    if not learned.all():
        target_event, target_ids = np.flatnonzero(learned), target_ids[learned]
    if whole_catalogue:
        lookup, history = _whole_catalogue(history_ids, catalogue.num_known)
        target, negative = _int64(target_ids), _int64(negative_ids)
        target_index, negative_index = target, negative
    else:
        lookup, (history, target_index, negative_index) = distinct_ids(history_ids, target_ids, negative_ids)
        target, negative = _int64(target_ids), _int64(negative_ids)
    only_known = whole_catalogue and lookup.size == catalogue.num_known
    return HistoryBatch(
        row_ids=as_tensor(_int64(row_ids)),
        layout=layout_of(offsets),
        lookup_ids=as_tensor(lookup),
        history_index=as_tensor(history),
        target_ids=as_tensor(target),
        target_index=as_tensor(target_index),
        negative_ids=as_tensor(negative),
        negative_index=as_tensor(negative_index),
        items=catalogue.known if only_known else catalogue.request(lookup),
        target_event=None if target_event is None else as_tensor(target_event),
        num_candidates=catalogue.num_known,
    )


def with_negatives(batch: HistoryBatch, negative_ids: np.ndarray, catalogue: Catalogue) -> HistoryBatch:
    """A batch on the host, without negatives so far, that looks up and compares these as well. New items come behind the others."""
    held = batch.lookup_ids.numpy()  # ascending
    ids, place = joined_ids(held, _int64(negative_ids))
    new = ids[held.size :]
    return replace(
        batch,
        lookup_ids=as_tensor(ids),
        items=with_items(batch.items, new, catalogue) if new.size else batch.items,
        negative_ids=as_tensor(_int64(negative_ids)),
        negative_index=as_tensor(place),
    )


def with_inputs(
    batch: HistoryBatch,
    catalogue: Catalogue,
    features: Mapping[str, ValueColumn],
    user_features: Mapping[str, ValueColumn],
    times: np.ndarray | None,
    next_times: np.ndarray | None,
) -> HistoryBatch:
    """A batch with what the model is told besides items: features of its N input events and B users, as columns by name.

    times: (N,) int64, of the events, in the unit of the logs; next_times: of the event after each, which in its place is what a
    recommendation is asked for.
    """
    inputs, offsets = catalogue.inputs, batch.layout.offsets.numpy()
    if inputs == NO_INPUTS:
        return batch
    batch = replace(batch, items=catalogue.beside(batch.items, features, user_features))
    if inputs.clock is None:
        return batch
    assert times is not None
    assert next_times is not None
    seconds = torch.from_numpy(seconds_since_start(inputs.clock, times, times, offsets))
    asked = seconds
    if inputs.clock.tells_request:
        asked = torch.from_numpy(seconds_since_start(inputs.clock, next_times, times, offsets))
    rows = {name: as_tensor(found) for name, found in time_rows(inputs.clock, times, offsets).items()}
    return replace(batch, times=seconds, request_times=asked, time_rows=rows)


def _whole_catalogue(history_ids: np.ndarray, num_known: int) -> tuple[np.ndarray, np.ndarray]:
    """(lookup ids, history index): every known id at its own place, and behind them what else the histories have."""
    history = _int64(history_ids)
    lookup = np.arange(num_known, dtype=np.int64)
    if not history.size or history.max() < num_known:
        return lookup, history
    beyond = np.unique(history[history >= num_known])
    index = np.where(history < num_known, history, num_known + np.searchsorted(beyond, history))
    return np.concatenate((lookup, beyond)), index


def as_tensor(values: np.ndarray) -> Tensor:
    """Shares memory where the array may be written to."""
    return torch.from_numpy(values if values.flags.writeable and values.flags.c_contiguous else values.copy())


def _int64(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int64)
