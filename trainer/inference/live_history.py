"""One history that grows: each new event is encoded from kept keys and values of the earlier ones, not from the start.

The vector equals that of a full pass, within rounding. A full pass is made where nothing can be kept: where earlier
events depend on later ones, and where a history is longer than `max_history`, so that its oldest events are dropped.
"""

from dataclasses import replace

import numpy as np
import torch

from models.attention.continued import PastEvents, nothing_past
from models.batches.history_batch import HistoryBatch, build_batch
from models.features.time import Clock, Earlier, time_rows
from trainer.data.stream.columns import concatenate, sliced
from trainer.data.stream.held_out import NOTHING
from trainer.data.stream.packed import PackedHistories
from trainer.inference.next_item import user_vectors
from trainer.inference.requests import Histories, with_requests
from trainer.inference.trained_model import TrainedModel


class LiveHistory:
    """The history of one user, with what is kept of its events.

    Args:
        trained: a next-item model.
        history: the events so far, of one user; it may be empty.
    """

    def __init__(self, trained: TrainedModel, history: Histories) -> None:
        if history.lengths.size != 1:
            raise ValueError(f"one history is needed, not {history.lengths.size}")
        self._trained = trained
        self._events = _without_request(history)
        self._past: PastEvents | None = None
        self._keeps = trained.model.can_continue

    @property
    def num_events(self) -> int:
        """The number of events."""
        return int(self._events.items.size)

    @property
    def num_kept(self) -> int:
        """The number of events with kept keys and values."""
        return 0 if self._past is None else self._past.num_events

    @property
    def last_time(self) -> int | None:
        """The time of the last event; None without events, or without times."""
        times = self._events.times
        return None if times is None or not times.size else int(times[-1])

    @property
    def seen(self) -> np.ndarray:
        """The ids of the items of the history, (n,) int64."""
        return self._events.items.astype(np.int64)

    def append(self, newer: Histories) -> None:
        """Append events of the same user. Raises ValueError if one is older than the last event of the history."""
        added = _without_request(newer)
        old = self._events
        times = None
        if old.times is not None and added.times is not None:
            times = np.concatenate((old.times, added.times))
            if (np.diff(times[max(0, old.times.size - 1) :]) < 0).any():
                raise ValueError("events must be appended in the order of their times")
        items = np.concatenate((old.items, added.items))
        self._events = replace(
            old,
            items=items,
            ends=np.asarray([items.size]),
            times=times,
            features={name: concatenate([column, added.features[name]]) for name, column in old.features.items()},
        )

    def vector(self, at: int | None = None) -> torch.Tensor:
        """Return the vector of the history, (D,) float32; zeros without events.

        at: time of the request, in the unit of the dataset; by default that of the last event.
        """
        config = self._trained.model.config
        if not self._keeps or not 0 < self.num_events <= config.max_history:
            self._past = None
            return user_vectors(self._trained, self._whole(at))[0]
        clock = self._trained.catalogue.inputs.clock
        past = self._past or nothing_past(1, clock is not None)
        batch = self._newest(past.num_events, at, clock)
        batch = replace(batch, items=self._trained.dynamic.rows_of(batch.items))
        num_new = self.num_events - past.num_events
        with torch.no_grad():
            # The last event is encoded again with the next one: the time of its request is not known before.
            vectors, self._past = self._trained.model.continued_vectors(
                self._trained.look_up(batch.items), batch, past, torch.tensor([num_new - 1])
            )
        vector: torch.Tensor = vectors[0]
        return vector

    def _whole(self, at: int | None) -> Histories:
        events = self._events
        assert events.users is not None
        offsets = np.asarray([0, events.items.size])
        ids = events.items.astype(np.int64)
        return with_requests(events.users, offsets, ids, events.times, events.features, events.user_features, at)

    def _newest(self, start: int, at: int | None, clock: Clock | None) -> HistoryBatch:
        """Return the batch of the events from `start` on, with times since the first event of the history."""
        events, catalogue = self._events, self._trained.catalogue
        offsets = np.asarray([0, events.items.size - start])
        ids = events.items[start:].astype(np.int64)
        batch = build_batch(np.zeros(1, np.int64), offsets, ids, NOTHING, NOTHING, catalogue, False)
        features = {name: sliced(column, start, events.items.size) for name, column in events.features.items()}
        batch = replace(batch, items=catalogue.with_context(batch.items, features, events.user_features))
        if clock is None:
            return batch
        assert events.times is not None
        times = events.times[start:]
        requests = np.append(times[1:], times[-1] if at is None else at)
        before = Earlier(np.asarray([start > 0]), events.times[[max(0, start - 1)]])
        ticks = clock.ticks_per_second
        seconds = torch.from_numpy(times // ticks - events.times[0] // ticks)
        requested = (
            torch.from_numpy(requests // ticks - events.times[0] // ticks) if clock.has_request_time else seconds
        )
        rows = {name: torch.from_numpy(rows) for name, rows in time_rows(clock, times, offsets, before).items()}
        return replace(batch, times=seconds, request_times=requested, time_rows=rows)


def _without_request(history: Histories) -> PackedHistories:
    """Return the events of a single history without the one of the request."""
    packed, size = history.packed, int(history.lengths[0])
    return replace(
        packed,
        items=packed.items[:size],
        ends=np.asarray([size]),
        times=None if packed.times is None else packed.times[:size],
        features={name: sliced(column, 0, size) for name, column in packed.features.items()},
    )
