"""Groups of events by which attention is added up: recency, age, hour of day, features of events and of items.

Shapes: N events of all histories, n pairs of an event and a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.stream.columns import Column, Lists

# First place of each group of recency, counted from 1 for the newest event.
_PLACES = (1, 2, 3, 4, 5, 6, 11, 21, 51, 101, 201, 501, 1001)
# Upper bound in seconds of each group of ages, and its label. The last group has no bound.
_AGES = (
    (60, "under 1 minute"),
    (3_600, "under 1 hour"),
    (86_400, "under 1 day"),
    (7 * 86_400, "under 1 week"),
    (30 * 86_400, "under 30 days"),
    (90 * 86_400, "under 90 days"),
    (365 * 86_400, "under 1 year"),
)
_OLDEST_AGE = "1 year or more"


@dataclass(frozen=True)
class Grouping:
    """One way to divide events into groups."""

    name: str
    """Its name in tables: "recency", "age", "hour", or a feature such as "item.category"."""
    title: str
    """Its name for people."""
    labels: tuple[str, ...]
    """Name of each group, in order."""
    ordered: bool
    """Whether the order of the groups has a meaning, as of hours. Others are shown by size."""


@dataclass(frozen=True)
class GroupCodes:
    """The groups of events, as pairs. An event of several groups counts in each with an equal share."""

    events: np.ndarray
    """(n,) int64 places of events among the N, ascending."""
    groups: np.ndarray
    """(n,) int64 numbers of groups."""
    shares: np.ndarray
    """(n,) float64, which sum to 1 for each event; an event without a pair is in no group."""


def recency_grouping() -> Grouping:
    """Return the groups of places from the newest event."""
    ends = [first - 1 for first in _PLACES[1:]]
    labels = [
        str(first) if first == last else f"{first} to {last}" for first, last in zip(_PLACES[:-1], ends, strict=True)
    ]
    return Grouping("recency", "place from the newest event", (*labels, f"{_PLACES[-1]} or more"), True)


def recency_codes(offsets: np.ndarray) -> GroupCodes:
    """Return the group of each event by its place from the newest event of its history.

    offsets: (B + 1,) bounds of the histories among the N events.
    """
    ends = np.repeat(offsets[1:], np.diff(offsets))
    places = ends - np.arange(offsets[-1])
    return _single(np.searchsorted(_PLACES, places, side="right") - 1)


def age_grouping() -> Grouping:
    """Return the groups of the time from an event to its request."""
    return Grouping("age", "time before the request", (*(label for _, label in _AGES), _OLDEST_AGE), True)


def age_codes(times: np.ndarray, requested_at: np.ndarray, offsets: np.ndarray, ticks_per_second: int) -> GroupCodes:
    """Return the group of each event by the time from it to the request of its history.

    Args:
        times: (N,) int64 times of the events.
        requested_at: (B,) times of the requests.
        offsets: (B + 1,) bounds of the histories.
        ticks_per_second: unit of the times.
    """
    seconds = np.maximum(0, np.repeat(requested_at, np.diff(offsets)) - times) // ticks_per_second
    return _single(np.searchsorted([bound for bound, _ in _AGES], seconds, side="right"))


def hour_grouping() -> Grouping:
    """Return the hours of the day."""
    return Grouping("hour", "hour of the day of the event (UTC)", tuple(f"{hour:02}" for hour in range(24)), True)


def hour_codes(times: np.ndarray, ticks_per_second: int) -> GroupCodes:
    """Return the hour of the day of each event, in UTC."""
    return _single(times // ticks_per_second // 3_600 % 24)


def feature_grouping(name: str, title: str, labels: Sequence[str], ordered: bool = False) -> Grouping:
    """Return the groups of a feature. labels: the value of each id, from id 0 on."""
    return Grouping(name, title, tuple(labels), ordered)


def feature_codes(column: Column, num_groups: int) -> GroupCodes:
    """Return the groups of each event by the ids of a feature; ids outside of the groups count as id 0 (unknown).

    Args:
        column: (N,) ids, or N lists of ids. An event with an empty list is in no group.
        num_groups: number of ids, 0 included.
    """
    if not isinstance(column, Lists):
        return _single(_known(column, num_groups))
    lengths = np.diff(column.offsets)
    events = np.repeat(np.arange(lengths.size), lengths)
    return GroupCodes(events, _known(column.values, num_groups), 1.0 / np.repeat(lengths, lengths))


def _known(ids: np.ndarray, num_groups: int) -> np.ndarray:
    numbers = ids.astype(np.int64)
    return np.where((numbers >= 0) & (numbers < num_groups), numbers, 0)


def _single(groups: np.ndarray) -> GroupCodes:
    numbers = groups.astype(np.int64)
    return GroupCodes(np.arange(numbers.size), numbers, np.ones(numbers.size))
