"""Histories that a model can be asked about, each with the moment of a request."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainer.data.dataset.manifest import UNKNOWN_ID
from trainer.data.stream.columns import Column, Lists, concatenate, stretches, take
from trainer.data.stream.packed import PackedHistories


@dataclass(frozen=True)
class Histories:
    """Histories that a model can be asked about.

    Each history ends with an event without an item at the time of the request, which no result depends on except through that
    time.
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

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the packed ids of the items of each history, and their bounds (B + 1,)."""
        places, offsets = stretches(self.packed.starts, self.packed.starts + self.lengths)
        return self.packed.items.take(places).astype(np.int64), offsets


def with_requests(
    users: pa.Array,
    offsets: np.ndarray,
    ids: np.ndarray,
    times: np.ndarray | None,
    features: Mapping[str, Column],
    user_features: Mapping[str, Column],
    at: np.ndarray | int | None,
) -> Histories:
    """Return histories that end with an event for the request.

    Args:
        users: (B,) values as in the logs.
        offsets: (B + 1,) bounds of the histories.
        ids: (N,) items.
        times: (N,) times of the events, if there are any.
        features: columns of the events by name.
        user_features: columns of the users by name.
        at: time of the requests, or of each, (B,); None: the latest time of all events.
    """
    lengths = np.diff(offsets)
    # Entry N of every column is that of the requests; it repeats the last one, and no result depends on it.
    places = np.insert(np.arange(ids.size), offsets[1:], ids.size)
    ends = np.cumsum(lengths + 1)
    items = np.append(ids, UNKNOWN_ID).astype(np.int32)[places]
    if times is not None:
        latest = int(times.max(initial=0))
        times = np.append(times, 0)[places]
        times[ends - 1] = latest if at is None else at
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
