"""A batch in pieces that are encoded one after another, so that only the activations of one exist at a time.

Pieces are whole histories, in order. What was looked up, negatives and candidates are those of the whole batch, and shared: an
index into the looked-up items or rows means the same in a piece. The sum of the losses of the pieces is the loss of the batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from models.batches.history_batch import Cut, HistoryBatch
from models.batches.jagged import layout_of
from models.features.values import FeatureValues, cut_values

# How each field of a batch is cut. The others are shared by all pieces: SHARED, and of `items` all but what events and users say.
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
    """The same batch (on the CPU), to be encoded in pieces of at most `most_events` input events, or of one longer history.

    Runs on the host, away from the step, as layouts do.
    """
    offsets = batch.layout.offsets.numpy()
    if most_events is None or batch.layout.num_events <= most_events:
        return batch
    ends = piece_ends(offsets, most_events)
    events = offsets[ends]
    targets = events
    if batch.target_event is not None:
        targets = np.searchsorted(batch.target_event.numpy(), events)  # they are in the order of their events
    elif batch.target_ids.numel() == 0:
        targets = np.zeros_like(events)
    values = {
        f"{owners}.{name}": found
        for owners, given, places in (("events", batch.items.events, events), ("users", batch.items.users, ends))
        for name, found in value_places(given, places).items()
    }
    cuts = tuple(
        Cut(
            histories=(ends[n], ends[n + 1]),
            events=pair_of(events, n),
            targets=pair_of(targets, n),
            values={name: pair_of(found, n) for name, found in values.items()},
            layout=layout_of(offsets[ends[n] : ends[n + 1] + 1] - events[n]),
        )
        for n in range(len(ends) - 1)
    )
    return replace(batch, cuts=cuts)


def piece_ends(offsets: np.ndarray, most: int) -> list[int]:
    """The histories at which pieces begin and end, of at most `most` of what offsets (B + 1,) count, or of one history."""
    ends = [0]
    while ends[-1] < offsets.size - 1:
        stop = int(np.searchsorted(offsets, offsets[ends[-1]] + most, side="right")) - 1
        ends.append(max(stop, ends[-1] + 1))
    return ends


def value_places(found: Mapping[str, FeatureValues], owners: Any) -> dict[str, np.ndarray]:
    """By feature, where the values of these owners begin: they are in the order of their owners."""
    return {name: np.searchsorted(given.owner.numpy(), owners) for name, given in found.items()}


def pair_of(places: np.ndarray, n: int) -> tuple[int, int]:
    """The bounds of piece n."""
    return int(places[n]), int(places[n + 1])


def parts_of(batch: HistoryBatch) -> Iterator[HistoryBatch]:
    """The pieces of a batch, as views of it on whatever device it is; the batch itself if it is in one piece."""
    if not batch.cuts:
        yield batch
        return
    for cut in batch.cuts:
        fields = {name: cut_field(getattr(batch, name), getattr(cut, along)) for name, along in ALONG.items()}
        if batch.target_event is not None:
            fields["target_event"] = fields["target_event"] - cut.events[0]
        items = batch.items
        if items.events or items.users:
            said = (
                cut_features(items.events, "events", cut.events, cut.values),
                cut_features(items.users, "users", cut.histories, cut.values),
            )
            items = replace(items, events=said[0], users=said[1])
        yield replace(batch, layout=cut.layout, cuts=(), items=items, **fields)


def cut_field(value: Any, bounds: tuple[int, int]) -> Any:
    """A field of a batch, or a mapping of such, of a piece."""
    first, stop = bounds
    if isinstance(value, Mapping):
        return {name: given[first:stop] for name, given in value.items()}
    return None if value is None else value[first:stop]


def cut_features(
    found: Mapping[str, FeatureValues], owners: str, bounds: tuple[int, int], places: Mapping[str, tuple[int, int]]
) -> dict[str, FeatureValues]:
    """What features say of the owners bounds[0] .. bounds[1] - 1, as if there were no others."""
    return {name: cut_values(given, bounds, places[f"{owners}.{name}"]) for name, given in found.items()}
