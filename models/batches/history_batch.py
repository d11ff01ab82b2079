"""The input of a next-item model for one step: jagged histories, targets, negatives and the table rows that they need.

Shapes: B histories, N input events, U looked-up ids, T targets, C shared negatives.

Every id of a step is looked up once, as one of `lookup_ids`; everything else is an index into them. So a batch sends no
duplicates between ranks, and the gradients of one id are summed before they are sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from models import devices
from models.batches.catalogue_share import CatalogueShare
from models.batches.jagged import JaggedLayout, layout_of
from models.batches.merge_requests import with_items
from models.batches.transfer import to_device
from models.features.catalogue import Catalogue
from models.features.inputs import NO_INPUTS
from models.features.request import ItemRequest
from models.features.time import seconds_since_start, time_rows
from models.features.unique import merge_ids, unique_ids
from models.features.values import ValueColumn

FIRST_ITEM = 1  # id 0 stands for unknown items: looked up in histories, never a target and never recommended

_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Cut:
    """A piece of a batch, as pairs (first, one past the last)."""

    histories: tuple[int, int]
    events: tuple[int, int]
    targets: tuple[int, int]
    # bounds of the values of each feature of events and users, by "events.NAME" or "users.NAME"
    values: Mapping[str, tuple[int, int]]
    layout: JaggedLayout  # of the events of the piece


@dataclass(frozen=True)
class HistoryBatch:
    """The input of one step. Fields about times are set only if the model uses times.

    Targets are the next events, or the masked ones. They are empty when nothing is learned.
    """

    row_ids: Tensor  # (B,) int64, ids of the examples
    layout: JaggedLayout  # of the input events
    lookup_ids: Tensor  # (U,) int64, items of the batch
    history_index: Tensor  # (N,) int64 into lookup_ids
    target_ids: Tensor  # (T,) int64
    target_index: Tensor  # (T,) int64 into lookup_ids; empty if other ranks may look up the targets
    negative_ids: Tensor  # (C,) int64, empty unless the objective samples
    negative_index: Tensor  # (C,) int64 into lookup_ids
    items: ItemRequest  # look-ups for the items and for the features of events and users
    target_event: Tensor | None = None  # (T,) input events of the targets; None: every event has one, so that T is N
    num_candidates: int = 0  # a softmax over the whole catalogue compares the ids from 1 to below this
    share: CatalogueShare | None = None  # the candidates that this rank scores; None: all
    negative_log_q: Tensor | None = None  # (C,) float32, log of the probability of drawing each, if corrected
    target_log_q: Tensor | None = None  # (T,) float32, the same of the targets
    masked: Tensor | None = None  # (N,) bool, input events that the model restores; their item is 0
    times: Tensor | None = None  # (N,) int64, seconds from the first event of each history in the batch
    # (N,) int64, the same until the request for the next event; `times` if the model does not receive it
    request_times: Tensor | None = None
    time_rows: Mapping[str, Tensor] = field(default_factory=dict)  # (N,) int64 by part of an event's time
    # pieces that are encoded one after another (models.batches.micro_batches); empty: all at once
    cuts: tuple[Cut, ...] = ()

    @property
    def num_targets(self) -> int:
        """Return the number of targets, over which the loss is a sum."""
        return self.target_ids.numel()

    def to(self, device: torch.device) -> "HistoryBatch":
        return self if devices.is_host(device) else to_device(self, device)


def build_batch(
    row_ids: np.ndarray,
    offsets: np.ndarray,
    history_ids: np.ndarray,
    target_ids: np.ndarray,
    negative_ids: np.ndarray,
    catalogue: Catalogue,
    whole_catalogue: bool,
    share: tuple[int, int] | None = None,
) -> HistoryBatch:
    """Assemble a batch on the host from packed arrays.

    Args:
        row_ids: ids of the examples, (B,).
        offsets: of the histories, (B + 1,).
        history_ids: items of the input events, (N,).
        target_ids: an item per input event, (N,), or (0,). Targets that the training split does not contain are not learned.
        negative_ids: items that the objective uses as negatives, (C,).
        catalogue: all items.
        whole_catalogue: the objective scores all items of the training split.
        share: the ids from share[0] to below share[1] are those of the training split that this rank looks up and scores, if
            ranks divide them. It looks up no targets then.
    """
    learned = (target_ids >= FIRST_ITEM) & (target_ids < catalogue.num_known)
    target_event = None
    if not learned.all():
        target_event = np.flatnonzero(learned)
        target_ids = target_ids[learned]
    target = _int64(target_ids)
    negative = _int64(negative_ids)
    own_share = None
    if share is not None:
        lookup, (history, _) = unique_ids(history_ids, np.arange(*share))
        target_index, negative_index = _NOTHING, _NOTHING
        own_share = CatalogueShare(*share, place=int(np.searchsorted(lookup, share[0])))
    elif whole_catalogue:
        lookup, history = _whole_catalogue(history_ids, catalogue.num_known)
        target_index, negative_index = target, negative
    else:
        lookup, (history, target_index, negative_index) = unique_ids(history_ids, target_ids, negative_ids)
    only_known = whole_catalogue and share is None and lookup.size == catalogue.num_known
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
        share=own_share,
    )


def with_negatives(batch: HistoryBatch, negative_ids: np.ndarray, catalogue: Catalogue) -> HistoryBatch:
    """Return a batch that looks up and compares these negatives too.

    The batch is on the host and has no negatives yet. Its new items follow the others.
    """
    held = batch.lookup_ids.numpy()  # ascending
    ids, place = merge_ids(held, _int64(negative_ids))
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
    """Return a batch with the inputs of the model besides items.

    Args:
        batch: a batch on the host.
        catalogue: all items, and which inputs the model has.
        features: columns of the N input events by name.
        user_features: columns of the B users by name.
        times: of the events, (N,) int64 in the unit of the logs.
        next_times: of the event after each. In training they are the times of the requests.
    """
    inputs = catalogue.inputs
    offsets = batch.layout.offsets.numpy()
    if inputs == NO_INPUTS:
        return batch
    batch = replace(batch, items=catalogue.with_context(batch.items, features, user_features))
    if inputs.clock is None:
        return batch
    assert times is not None
    assert next_times is not None
    seconds = torch.from_numpy(seconds_since_start(inputs.clock, times, times, offsets))
    requested = seconds
    if inputs.clock.has_request_time:
        requested = torch.from_numpy(seconds_since_start(inputs.clock, next_times, times, offsets))
    rows = {name: as_tensor(rows_of) for name, rows_of in time_rows(inputs.clock, times, offsets).items()}
    return replace(batch, times=seconds, request_times=requested, time_rows=rows)


def _whole_catalogue(history_ids: np.ndarray, num_known: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (lookup ids, history index). Every known id is at its own index; other ids of the histories follow."""
    history = _int64(history_ids)
    lookup = np.arange(num_known, dtype=np.int64)
    if not history.size or history.max() < num_known:
        return lookup, history
    beyond = np.unique(history[history >= num_known])
    index = np.where(history < num_known, history, num_known + np.searchsorted(beyond, history))
    return np.concatenate((lookup, beyond)), index


def as_tensor(values: np.ndarray) -> Tensor:
    """Convert an array to a tensor. They share memory if the array is writeable."""
    return torch.from_numpy(values if values.flags.writeable and values.flags.c_contiguous else values.copy())


def _int64(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int64)
