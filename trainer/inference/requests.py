"""Histories of which a model is asked something, each with the moment of the request."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from trainer.data.dataset.manifest import UNKNOWN_ID
from trainer.data.stream.columns import Column, Lists, concatenate, sliced, stretches, take, take_all
from trainer.data.stream.packed import PackedHistories


@dataclass(frozen=True)
class Histories:
    """Histories of which a model is asked something.

    Each history ends with an event without an item at the time of the request. Results depend on its time alone.
    """

    packed: PackedHistories
    """The histories, with the events of the requests."""
    lengths: np.ndarray
    """(B,) int64, number of events of each history."""
    num_unknown: int
    """Events with an item that the training part does not know; the model sees them as one unknown item."""

    @property
    def users(self) -> pa.Array:
        """The users, (B,) values as in the logs."""
        assert self.packed.users is not None
        return self.packed.users

    @property
    def requested_at(self) -> np.ndarray:
        """Times of the requests, (B,) int64, of histories with times."""
        assert self.packed.times is not None
        times: np.ndarray = self.packed.times[self.packed.ends - 1]
        return times

    def part(self, start: int, stop: int) -> "Histories":
        """Return the histories start .. stop - 1."""
        packed = self.packed
        rows = slice(start, stop)
        cut = replace(
            packed,
            starts=packed.starts[rows],
            ends=packed.ends[rows],
            train_end=packed.train_end[rows],
            validation_end=packed.validation_end[rows],
            users=self.users.slice(start, stop - start),
            user_features={name: sliced(column, start, stop) for name, column in packed.user_features.items()},
        )
        return Histories(cut, self.lengths[rows], self.num_unknown)

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the packed ids of the items of each history, and their bounds (B + 1,)."""
        places, offsets = stretches(self.packed.starts, self.packed.starts + self.lengths)
        return self.packed.items.take(places).astype(np.int64), offsets


@dataclass(frozen=True)
class PlainHistories:
    """Histories one after another, without requests: history b has the events offsets[b] to offsets[b + 1]."""

    users: pa.Array
    """(B,) values as in the logs."""
    offsets: np.ndarray
    """(B + 1,) int64."""
    items: np.ndarray
    """(N,) ids."""
    times: np.ndarray | None
    """(N,) int64, ascending in each history; None if there are no times."""
    features: Mapping[str, Column]
    """Columns of the events by name."""
    user_features: Mapping[str, Column]
    """Columns of the users by name."""

    def until(self, at: np.ndarray) -> "PlainHistories":
        """Return the histories without events that are later than the moment of each, (B,)."""
        if self.times is None:
            return self
        kept = self.times <= np.repeat(at, np.diff(self.offsets))
        if kept.all():
            return self
        places = np.flatnonzero(kept)
        offsets = np.concatenate(([0], np.cumsum(kept)))[self.offsets]
        features = take_all(self.features, places)
        return PlainHistories(self.users, offsets, self.items[places], self.times[places], features, self.user_features)

    def asked(self, at: np.ndarray | None, latest: int) -> Histories:
        """Return the histories with requests.

        Args:
            at: (B,) times of the requests; later events are left out. None: as for `with_requests`.
            latest: as for `with_requests`.
        """
        whole = self if at is None else self.until(at)
        return with_requests(
            whole.users, whole.offsets, whole.items, whole.times, whole.features, whole.user_features, at, latest
        )


def with_requests(
    users: pa.Array,
    offsets: np.ndarray,
    ids: np.ndarray,
    times: np.ndarray | None,
    features: Mapping[str, Column],
    user_features: Mapping[str, Column],
    at: np.ndarray | int | None,
    latest: int | None = None,
) -> Histories:
    """Return histories that end with an event for the request.

    Args:
        users: (B,) values as in the logs.
        offsets: (B + 1,) bounds of the histories.
        ids: (N,) items.
        times: (N,) times of the events, if there are any.
        features: columns of the events by name.
        user_features: columns of the users by name.
        at: time of the requests, or of each, (B,). None: that of the last event of the history, or `latest` if that is later. So
            the time of a request does not depend on the other histories.
        latest: the latest time of the dataset, if it is known.
    """
    lengths = np.diff(offsets)
    # Entry N of every column is that of the requests. It repeats the last one, and no result depends on it.
    places = np.insert(np.arange(ids.size), offsets[1:], ids.size)
    ends = np.cumsum(lengths + 1)
    items = np.append(ids, UNKNOWN_ID).astype(np.int32)[places]
    if times is not None:
        times = np.append(times, 0 if latest is None else latest)
        if at is None:
            last = np.where(lengths > 0, times[np.maximum(offsets[1:] - 1, 0)], times[-1])
            at = last if latest is None else np.maximum(last, latest)
        times = times[places]
        times[ends - 1] = at
    padded = {name: take(_with_one_more(column), places) for name, column in features.items()}
    zeros = np.zeros(lengths.size, np.int64)
    packed = PackedHistories(items, ends - 1 - lengths, ends, zeros, zeros, users, times, padded, dict(user_features))
    return Histories(packed, lengths, int((ids == UNKNOWN_ID).sum()))


def _with_one_more(column: Column) -> Column:
    """Return a column with its last entry repeated, or with a zero if it has none."""
    if isinstance(column, Lists):
        return Lists(column.values, np.append(column.offsets, column.offsets[-1]))
    last = column[-1:] if column.shape[0] else np.zeros((1, *column.shape[1:]), column.dtype)
    return concatenate([column, last])
