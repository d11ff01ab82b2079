"""Micro-batches: pieces of a batch that are encoded one after another, so that only one piece's activations exist at a time.

Pieces are whole histories, in order. Looked-up vectors, negatives and candidates belong to the whole batch and are shared: an
index into the looked-up items or rows means the same in every piece. The losses of the pieces sum to the loss of the batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from models.batches.history_batch import Cut, HistoryBatch
from models.batches.jagged import layout_of
from models.features.values import FeatureValues, cut_values

# The axis along which each field of a batch is cut. All pieces share the other fields: SHARED, and `items` but for the features
# of events and users.
ALONG = {
    "row_ids": "histories",
    "history_index": "events",
    "masked": "events",
    "times": "events",
    "request_times": "events",
    "time_rows": "events",
    "target_ids": "targets",
    "target_index": "targets",
    "target_event": "targets",
    "target_log_q": "targets",
}
SHARED = ("lookup_ids", "negative_ids", "negative_index", "negative_log_q", "num_candidates")


def with_cuts(batch: HistoryBatch, most_events: int | None) -> HistoryBatch:
    """Return the same batch (on the CPU), to be encoded in pieces.

    A piece has at most `most_events` input events, or one longer history. This runs on the host, outside of the step, like
    layouts.
    """
    offsets = batch.layout.offsets.numpy()
    if most_events is None or batch.layout.num_events <= most_events:
        return batch
    return cut_at(batch, piece_ends(offsets, most_events))


def cut_at(batch: HistoryBatch, ends: list[int]) -> HistoryBatch:
    """Return a batch (on the CPU) that is cut at these histories, from 0 to B. Equal ends give an empty piece."""
    offsets = batch.layout.offsets.numpy()
    events = offsets[ends]
    targets = events
    if batch.target_event is not None:
        targets = np.searchsorted(batch.target_event.numpy(), events)  # they are in the order of their events
    elif batch.target_ids.numel() == 0:
        targets = np.zeros_like(events)
    values = {
        f"{owners}.{name}": starts
        for owners, given, places in (("events", batch.items.events, events), ("users", batch.items.users, ends))
        for name, starts in value_places(given, places).items()
    }
    cuts = tuple(
        Cut(
            histories=(ends[n], ends[n + 1]),
            events=pair_of(events, n),
            targets=pair_of(targets, n),
            values={name: pair_of(starts, n) for name, starts in values.items()},
            layout=layout_of(offsets[ends[n] : ends[n + 1] + 1] - events[n]),
        )
        for n in range(len(ends) - 1)
    )
    return replace(batch, cuts=cuts)


def piece_ends(offsets: np.ndarray, most: int) -> list[int]:
    """Return the histories at which pieces begin and end.

    A piece has at most `most` of what offsets (B + 1,) count, or one history.
    """
    ends = [0]
    while ends[-1] < offsets.size - 1:
        stop = int(np.searchsorted(offsets, offsets[ends[-1]] + most, side="right")) - 1
        ends.append(max(stop, ends[-1] + 1))
    return ends


def value_places(features: Mapping[str, FeatureValues], owners: Any) -> dict[str, np.ndarray]:
    """Return by feature where the values of these owners begin. Values are in the order of their owners."""
    return {name: np.searchsorted(given.owner.numpy(), owners) for name, given in features.items()}


def pair_of(places: np.ndarray, n: int) -> tuple[int, int]:
    """Return the bounds of piece n."""
    return int(places[n]), int(places[n + 1])


def parts_of(batch: HistoryBatch) -> Iterator[HistoryBatch]:
    """Yield the pieces of a batch as views of it, on any device. A batch without cuts is its own single piece."""
    if not batch.cuts:
        yield batch
        return
    for number, cut in enumerate(batch.cuts):
        fields = {name: cut_field(getattr(batch, name), getattr(cut, along)) for name, along in ALONG.items()}
        if batch.target_event is not None:
            fields["target_event"] = fields["target_event"] - cut.events[0]
        if batch.share is not None:
            fields["share"] = batch.share.of_piece(number)
        items = batch.items
        if items.events or items.users:
            features = (
                cut_features(items.events, "events", cut.events, cut.values),
                cut_features(items.users, "users", cut.histories, cut.values),
            )
            items = replace(items, events=features[0], users=features[1])
        yield replace(batch, layout=cut.layout, cuts=(), items=items, **fields)


def cut_field(value: Any, bounds: tuple[int, int]) -> Any:
    """Return the part of a field of a batch, or of a mapping of fields, that a piece holds."""
    first, stop = bounds
    if isinstance(value, Mapping):
        return {name: given[first:stop] for name, given in value.items()}
    return None if value is None else value[first:stop]


def cut_features(
    features: Mapping[str, FeatureValues], owners: str, bounds: tuple[int, int], places: Mapping[str, tuple[int, int]]
) -> dict[str, FeatureValues]:
    """Return the features of the owners bounds[0] .. bounds[1] - 1, with owners counted from 0."""
    return {name: cut_values(given, bounds, places[f"{owners}.{name}"]) for name, given in features.items()}
