"""Inputs of a program from packed histories, on the host (trainer.export.programs lists them). Imports no TorchRec.

The events that are taken, and the times that the model receives, are those of an evaluation: trainer.data.stream.held_out for the
next item, trainer.data.stream.impressions for rankers.

Shapes: B histories, N events, M impressions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from models.features.inputs import ModelInputs
from models.features.time import Clock, Earlier, seconds_since_start, time_rows, time_rows_after
from models.features.values import InputFeature
from trainer.data.dataset.manifest import UNKNOWN_ID
from trainer.data.stream.columns import Column, Lists, stretches, take_all
from trainer.data.stream.masking import times_before
from trainer.data.stream.packed import PackedHistories

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class DynamicRows:
    """The rows of a table with dynamic ids."""

    ids: np.ndarray
    """(n,) int64 raw ids, ascending."""
    rows: np.ndarray
    """(n,) int64."""

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the rows of raw ids; 0 for an id without one."""
        if not self.ids.size:
            return np.zeros(values.shape, np.int64)
        place = np.minimum(np.searchsorted(self.ids, values), self.ids.size - 1)
        return np.where(self.ids[place] == values, self.rows[place], 0)


@dataclass(frozen=True)
class Form:
    """The form in which a program needs histories."""

    inputs: ModelInputs
    """The inputs of the model besides items."""
    max_history: int
    """Most events of a history; for rankers, those that an impression attends to in one layer."""
    masks_items: bool = False
    """Whether a history ends with a masked event, which the model restores."""
    receptive: int = 0
    """For rankers: events before an impression that its score depends on."""
    least_places: int = 1
    """Fewest places of histories."""
    dynamic: Mapping[str, DynamicRows] = field(default_factory=dict)
    """By table with dynamic ids."""


def next_item_inputs(form: Form, packed: PackedHistories, rows: np.ndarray, lengths: np.ndarray) -> Arrays:
    """Return the inputs for the histories of some rows.

    Args:
        form: what the program needs.
        packed: histories that end with an event for the request (trainer.inference.requests).
        rows: the rows, (B,).
        lengths: number of events of each row before the request, (B,), 1 at least.
    """
    starts = packed.starts[rows]
    # A masked event takes the place of the request's.
    masks = int(form.masks_items)
    recent, offsets = stretches(starts + np.maximum(0, lengths - form.max_history + masks), starts + lengths + masks)
    items = packed.items.take(recent).astype(np.int64)
    masked = np.zeros(recent.size, np.bool_)
    if masks:
        masked[offsets[1:] - 1] = True
        items[masked] = UNKNOWN_ID
    arrays = {"items": items, "offsets": offsets, "places": places_of(offsets, form.least_places)}
    clock = form.inputs.clock
    if clock is not None:
        assert packed.times is not None
        times = packed.times.take(recent)
        requested = packed.times.take(recent + 1 - masks)
        if masks and not clock.has_request_time:
            times = times_before(times, masked, offsets)
        arrays["seconds"] = seconds_since_start(clock, times, times, offsets)
        arrays["request_seconds"] = arrays["seconds"]
        if clock.has_request_time:
            arrays["request_seconds"] = seconds_since_start(clock, requested, times, offsets)
        arrays |= _named("time", time_rows(clock, times, offsets))
    arrays |= _columns(form, "event", form.inputs.events, take_all(packed.features, recent))
    return arrays | _columns(form, "user", form.inputs.users, take_all(packed.user_features, rows))


def ranking_inputs(form: Form, packed: PackedHistories, rows: np.ndarray) -> tuple[Arrays, np.ndarray]:
    """Return the inputs for the impressions of some rows, and the place of each among all impressions, (M,).

    Args:
        form: what the program needs.
        packed: histories with impressions.
        rows: the rows, (B,), each with at least one impression.
    """
    shown = packed.impressions
    assert shown is not None
    first, last = shown.starts[rows], shown.ends[rows]
    begin = np.maximum(0, shown.history_end[first] - form.receptive)
    events, offsets = stretches(packed.starts[rows] + begin, packed.starts[rows] + shown.history_end[last - 1])
    places, candidate_offsets = stretches(first, last)
    history_end = shown.history_end.take(places) - np.repeat(begin, last - first)
    arrays = {
        "items": packed.items.take(events).astype(np.int64),
        "offsets": offsets,
        "candidate_items": shown.items.take(places).astype(np.int64),
        "candidate_offsets": candidate_offsets,
        "candidate_places": places_of(candidate_offsets, 1),
        "history_end": history_end,
    }
    clock = form.inputs.clock
    if clock is not None:
        assert packed.times is not None
        before = Earlier(
            begin > 0, np.where(begin > 0, packed.times[packed.starts[rows] + np.maximum(begin, 1) - 1], 0)
        )
        arrays |= _times(clock, packed.times.take(events), offsets, before)
        arrays |= _times_shown(clock, arrays, shown.times.take(places), packed.times.take(events))
    arrays |= _columns(form, "event", form.inputs.events, take_all(packed.features, events))
    arrays |= _columns(form, "user", form.inputs.users, take_all(packed.user_features, rows))
    arrays |= _columns(form, "candidate", form.inputs.candidates, take_all(shown.features, places))
    return with_no_empty_history(arrays, form.least_places), places


def _times(clock: Clock, times: np.ndarray, offsets: np.ndarray, before: Earlier) -> Arrays:
    return {
        "seconds": seconds_since_start(clock, times, times, offsets),
        **_named("time", time_rows(clock, times, offsets, before)),
    }


def _times_shown(clock: Clock, arrays: Arrays, shown_at: np.ndarray, times: np.ndarray) -> Arrays:
    """Return the times of impressions, relative to the history of each."""
    offsets, seen = arrays["offsets"], arrays["history_end"]
    owner = np.repeat(np.arange(offsets.size - 1), np.diff(arrays["candidate_offsets"]))
    starts = offsets[:-1][owner]
    padded = np.append(times, 0)  # impressions without a history point at the last entry
    seconds = shown_at // clock.ticks_per_second - padded[starts] // clock.ticks_per_second
    previous = padded[np.where(seen > 0, starts + seen - 1, times.size)]
    return {
        "candidate_seconds": np.where(np.diff(offsets)[owner] > 0, seconds, 0),
        **_named("candidate_time", time_rows_after(clock, shown_at, previous, seen == 0)),
    }


def with_no_empty_history(arrays: Arrays, least_places: int) -> Arrays:
    """Return inputs in which each history has an event, with places: an empty one gets an event that no impression sees."""
    offsets = arrays["offsets"]
    lengths = np.diff(offsets)
    arrays = dict(arrays)
    if (lengths == 0).any():
        added = np.repeat(offsets[:-1][lengths == 0], 1)
        per_event = [name for name in arrays if name in ("items", "seconds") or name.startswith(("time.", "event."))]
        for name in per_event:
            column = arrays[name]
            nothing = np.full((1, *column.shape[1:]), -1 if name.startswith("event.") else 0, column.dtype)
            if column.dtype.kind == "f":
                nothing = np.zeros_like(nothing)
            arrays[name] = np.insert(column, added, nothing, axis=0)
        arrays["offsets"] = np.concatenate(([0], np.cumsum(np.maximum(lengths, 1))))
    return arrays | {"places": places_of(arrays["offsets"], least_places)}


def places_of(offsets: np.ndarray, least: int) -> np.ndarray:
    """Return the numbers below the longest stretch, at least `least` of them, (L,) int64."""
    return np.arange(max(least, int(np.diff(offsets).max(initial=1))))


def _columns(form: Form, owners: str, features: tuple[InputFeature, ...], columns: Mapping[str, Column]) -> Arrays:
    return {f"{owners}.{feature.name}": _column(form, feature, columns[feature.name]) for feature in features}


def _column(form: Form, feature: InputFeature, column: Column) -> np.ndarray:
    """Return a feature as a program takes it: rows (owners, V) int64, or numbers (owners, W) float32."""
    if feature.table is None:
        assert isinstance(column, np.ndarray)
        return np.ascontiguousarray(column.reshape(column.shape[0], -1), np.float32)
    dynamic = form.dynamic.get(feature.table)
    if isinstance(column, np.ndarray):
        rows = column if dynamic is None else dynamic.of(column)
        return np.where(column == feature.missing, -1, rows).astype(np.int64)[:, None]
    return padded_rows(column if dynamic is None else replace(column, values=dynamic.of(column.values)))


def padded_rows(column: Lists) -> np.ndarray:
    """Return lists as rows (owners, V) int64, with -1 after the end of each."""
    lengths = np.diff(column.offsets)
    rows = np.full((lengths.size, max(1, int(lengths.max(initial=0)))), -1, np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = column.values[column.offsets[0] : column.offsets[-1]]
    return rows


def _named(prefix: str, rows: Mapping[str, np.ndarray]) -> Arrays:
    return {f"{prefix}.{name}": column for name, column in rows.items()}
