"""Queries of an evaluation: which events of a row are history, and which are the targets that are ranked after it.

Pure numpy, without a loop over rows or events.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.data.dataset.manifest import UNKNOWN_ID
from trainer.data.stream.columns import stretches
from trainer.data.stream.packed import PackedHistories

Targets = Literal["all", "first", "each"]
Repeats = Literal["keep", "drop"]


@dataclass(frozen=True)
class Queries:
    """Queries of some rows, in the order of the rows and of their events."""

    # (Q,) rows among the packed ones. A row has several queries if each of its targets is one.
    rows: np.ndarray
    # (Q,) number of events of the history.
    low: np.ndarray
    # (T,) positions of the targets among the packed events.
    places: np.ndarray
    # (Q + 1,) bounds in `places`.
    offsets: np.ndarray
    # (Q,) weight of the query in a mean over users: 1 / number of queries of its row.
    weights: np.ndarray
    # Targets that were dropped because the user had consumed them before.
    num_repeats: int = 0

    def sliced(self, start: int, stop: int) -> "Queries":
        """Return queries start .. stop - 1, without the count of dropped targets."""
        first, last = self.offsets[start], self.offsets[stop]
        return Queries(
            self.rows[start:stop],
            self.low[start:stop],
            self.places[first:last],
            self.offsets[start : stop + 1] - first,
            self.weights[start:stop],
        )


def queries_of(
    packed: PackedHistories, rows: np.ndarray, low: np.ndarray, high: np.ndarray, targets: Targets, repeats: Repeats
) -> Queries:
    """Return the queries of rows. A target without any event before it has nothing to attend to, and is left out.

    Args:
        packed: histories.
        rows: (R,) rows to evaluate.
        low: (R,) number of events before the held-out ones.
        high: (R,) number of events with the held-out ones.
        targets: which held-out events are targets, and of how many queries.
        repeats: whether targets that the user has consumed before are dropped.
    """
    starts = packed.starts[rows]
    places, offsets = stretches(starts + low, starts + np.maximum(low, high))
    owner = np.repeat(np.arange(rows.size), np.diff(offsets))
    num_repeats = 0
    if repeats == "drop":
        # With one set of targets, or only the first, what was consumed before the held-out part counts.
        before = places if targets == "each" else starts[owner] + low[owner]
        kept = ~_consumed(packed, rows, owner, places, before)
        num_repeats = int(kept.size - kept.sum())
        places, owner = places[kept], owner[kept]
    if targets == "first":
        owner, first = np.unique(owner, return_index=True)
        places = places[first]
    # The history of a set of targets ends before the held-out part, that of a single target before this target.
    ends = low[owner] if targets == "all" else places - starts[owner]
    some = ends > 0
    places, owner, ends = places[some], owner[some], ends[some]
    if targets == "all":
        queried, first, counts = np.unique(owner, return_index=True, return_counts=True)
        bounds = np.append(0, np.cumsum(counts))
        return Queries(rows[queried], ends[first], places, bounds, np.ones(queried.size), num_repeats)
    weights = 1.0 / np.bincount(owner, minlength=rows.size)[owner]
    return Queries(rows[owner], ends, places, np.arange(places.size + 1), weights, num_repeats)


def _consumed(
    packed: PackedHistories, rows: np.ndarray, owner: np.ndarray, places: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """Return for each target whether its user has an event of the same item at a position below `before`, (T,) bool.

    Unknown items cannot be distinguished, so they never repeat.
    """
    all_places, bounds = stretches(packed.starts[rows], packed.ends[rows])
    users = np.repeat(np.arange(rows.size), np.diff(bounds))
    items = packed.items[all_places].astype(np.int64)
    keys = users * (items.max(initial=0) + 1) + items
    # Events of a row ascend in time, so the first occurrence of a key is the first consumption.
    unique, first = np.unique(keys, return_index=True)
    targets = packed.items[places].astype(np.int64)
    own = owner * (items.max(initial=0) + 1) + targets
    repeated: np.ndarray = (all_places[first[np.searchsorted(unique, own)]] < before) & (targets != UNKNOWN_ID)
    return repeated
