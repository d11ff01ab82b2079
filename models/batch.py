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

from models.item_features import Catalogue, ItemRequest
from models.jagged import JaggedLayout, layout_of

FIRST_ITEM = 1  # id 0 stands for unknown items: looked up in histories, never learned nor recommended

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class JaggedFeature:
    """A feature of which each event (or user) has several values: entry i owns values[offsets[i]:offsets[i + 1]]."""

    values: Tensor
    offsets: Tensor

    def to(self, device: torch.device) -> "JaggedFeature":
        return JaggedFeature(self.values.to(device), self.offsets.to(device))


# Categorical values as ids (int32, or raw int64 ones of a dynamic table), numbers float32, moments int64, vectors (N, dim) float32.
FeatureTensor = Tensor | JaggedFeature


@dataclass(frozen=True)
class Cut:
    """A piece of a batch, as pairs (first, one past the last): of its histories, events and targets; and the layout of its events.

    values: the same of the values of each feature that is jagged, by "features.NAME" or "user_features.NAME".
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

    lookup_ids: (U,) int64, the items of the batch; items: what has to be looked up for them; history_index: (N,) int64 into
    lookup_ids. target_ids, target_index: (T,) int64, what is learned at the input events target_event (none: at every one, so that
    T is N), as id and as index into lookup_ids; empty when nothing is learned. num_candidates: the ids from 1 to below it are
    what a softmax over the whole catalogue compares. negative_ids, negative_index: (C,) int64, empty unless the objective samples.
    times, target_times: (N,) int64; features by name: an entry per input event; user_features by name: an entry per history;
    all of them there only if the reader was asked for them. cuts: the pieces that are encoded one after another
    (models.micro_batches), none if all is encoded at once.
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
    times: Tensor | None = None
    target_times: Tensor | None = None
    features: Mapping[str, FeatureTensor] = field(default_factory=dict)
    user_features: Mapping[str, FeatureTensor] = field(default_factory=dict)
    cuts: tuple[Cut, ...] = ()

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


def _whole_catalogue(history_ids: np.ndarray, num_known: int) -> tuple[np.ndarray, np.ndarray]:
    """(lookup ids, history index): every known id at its own place, and behind them what else the histories have."""
    history = _int64(history_ids)
    lookup = np.arange(num_known, dtype=np.int64)
    if not history.size or history.max() < num_known:
        return lookup, history
    beyond = np.unique(history[history >= num_known])
    index = np.where(history < num_known, history, num_known + np.searchsorted(beyond, history))
    return np.concatenate((lookup, beyond)), index


def distinct_ids(*ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The ids (none negative) that occur, ascending, each once (U,), and for every array the places of its ids there; int64."""
    wanted = np.concatenate(ids)
    limit = int(wanted.max(initial=-1)) + 1
    if limit <= 16 * wanted.size:
        # Few rows for so many ids: a flag for each of the table's rows, and nothing is sorted.
        found = np.zeros(limit, dtype=np.bool_)
        found[wanted] = True
        values = np.flatnonzero(found)
        places = np.empty(limit, dtype=np.int64)
        places[values] = np.arange(values.size)
        return values, [places.take(part) for part in ids]
    # An id and its place in one number: numpy sorts numbers several times faster than it sorts places by numbers.
    keys = np.sort((wanted.astype(np.int64) << 32) | np.arange(wanted.size))
    ordered, place = keys >> 32, keys & 0xFFFFFFFF
    is_first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    index = np.empty(wanted.size, dtype=np.int64)
    index[place] = np.cumsum(is_first) - 1
    return ordered[is_first], np.split(index, np.cumsum([part.size for part in ids])[:-1])


def as_tensor(values: np.ndarray) -> Tensor:
    """Shares memory where the array may be written to."""
    return torch.from_numpy(values if values.flags.writeable and values.flags.c_contiguous else values.copy())


def _int64(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int64)
