"""A batch in pieces that are encoded one after another, so that only the activations of one exist at a time.

Pieces are whole histories, in order. What was looked up, negatives and candidates are those of the whole batch, and shared: an
index into the looked-up items means the same in a piece. The sum of the losses of the pieces is the loss of the batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from models.batch import Cut, HistoryBatch
from models.features.values import FeatureValues
from models.item_features import ItemRequest
from models.jagged import layout_of

# How each field of a batch is cut. The others are shared by all pieces: SHARED; but what `items` says of events and users is cut.
ALONG = {
    "row_ids": "histories",
    "history_index": "events",
    "times": "events",
    "request_times": "events",
    "time_rows": "events",
    "target_ids": "targets",
    "target_index": "targets",
    "target_event": "targets",
}
SHARED = ("lookup_ids", "negative_ids", "negative_index", "num_candidates")


def with_cuts(batch: HistoryBatch, most_events: int | None) -> HistoryBatch:
    """The same batch (on the CPU), to be encoded in pieces of at most `most_events` input events, or of one longer history.

    Runs on the host, away from the step, as layouts do.
    """
    offsets = batch.layout.offsets.numpy()
    if most_events is None or batch.layout.num_events <= most_events:
        return batch
    ends = [0]
    while ends[-1] < offsets.size - 1:
        stop = int(np.searchsorted(offsets, offsets[ends[-1]] + most_events, side="right")) - 1
        ends.append(max(stop, ends[-1] + 1))
    events = offsets[ends]
    targets = events
    if batch.target_event is not None:
        targets = np.searchsorted(batch.target_event.numpy(), events)  # they are in the order of their events
    elif batch.target_ids.numel() == 0:
        targets = np.zeros_like(events)
    of_events = {name: _bounds(found, events) for name, found in batch.items.events.items()}
    of_users = {name: _bounds(found, np.asarray(ends)) for name, found in batch.items.users.items()}
    cuts = tuple(
        Cut(
            histories=(ends[n], ends[n + 1]),
            events=_pair(events, n),
            targets=_pair(targets, n),
            event_values={name: _pair(found, n) for name, found in of_events.items()},
            user_values={name: _pair(found, n) for name, found in of_users.items()},
            layout=layout_of(offsets[ends[n] : ends[n + 1] + 1] - events[n]),
        )
        for n in range(len(ends) - 1)
    )
    return replace(batch, cuts=cuts)


def parts_of(batch: HistoryBatch) -> Iterator[HistoryBatch]:
    """The pieces of a batch, as views of it on whatever device it is; the batch itself if it is in one piece."""
    if not batch.cuts:
        yield batch
        return
    for cut in batch.cuts:
        fields = {name: _cut_field(getattr(batch, name), name, cut) for name in ALONG}
        if batch.target_event is not None:
            fields["target_event"] = fields["target_event"] - cut.events[0]
        yield replace(batch, layout=cut.layout, items=_cut_items(batch.items, cut), cuts=(), **fields)


def _bounds(values: FeatureValues, owners: np.ndarray) -> np.ndarray:
    """Where the ids of the owners numbered `owners` begin; they lie in the order of their owners."""
    found: np.ndarray = np.searchsorted(values.owner.numpy(), owners)
    return found


def _cut_field(value: Any, field: str, cut: Cut) -> Any:
    first, stop = getattr(cut, ALONG[field])
    if isinstance(value, Mapping):
        return {name: given[first:stop] for name, given in value.items()}
    return None if value is None else value[first:stop]


def _cut_items(items: ItemRequest, cut: Cut) -> ItemRequest:
    if not items.events and not items.users:
        return items
    return replace(
        items,
        events={name: _cut_values(v, cut.events, cut.event_values[name]) for name, v in items.events.items()},
        users={name: _cut_values(v, cut.histories, cut.user_values[name]) for name, v in items.users.items()},
    )


def _cut_values(values: FeatureValues, owners: tuple[int, int], ids: tuple[int, int]) -> FeatureValues:
    own = slice(*ids)
    dense = values.dense[slice(*owners)] if values.dense.numel() else values.dense
    return FeatureValues(values.index[own], values.owner[own] - owners[0], values.weight[own], dense)


def _pair(places: np.ndarray, n: int) -> tuple[int, int]:
    return int(places[n]), int(places[n + 1])
