"""Examples as bytes that ranks send to one another.

The bytes for one rank are the ids of its examples, and then column after column: those of events, and those of users. Sender and
receiver know the number of examples and of their events, so neither is sent.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trainer.data.stream.columns import Column, Lists, concatenate_all, stretches, take_all
from trainer.data.stream.packed import PackedHistories


@dataclass(frozen=True)
class ExampleEvents:
    """Examples with the events that training needs of them, one after another."""

    # (B,) int64 ids of the examples.
    row_ids: np.ndarray
    # (B,) int64 number of events of each.
    sizes: np.ndarray
    # Columns of events by name: an entry per event.
    events: dict[str, Column]
    # Columns of users by name: an entry per example.
    users: dict[str, Column]

    def as_histories(self, train_end: np.ndarray) -> PackedHistories:
        """Return the examples as packed histories, with a row for each.

        train_end: (B,) the cut of each row.
        """
        ends = np.cumsum(self.sizes)
        events = dict(self.events)
        return PackedHistories(
            items=events.pop("items"),  # type: ignore[arg-type]
            starts=ends - self.sizes,
            ends=ends,
            train_end=train_end,
            validation_end=train_end,
            users=None,
            times=events.pop("times", None),  # type: ignore[arg-type]
            features={name.removeprefix("feature "): column for name, column in events.items()},
            user_features=self.users,
        )


def cut_out(
    packed: PackedHistories, rows: np.ndarray, starts: np.ndarray, sizes: np.ndarray, row_ids: np.ndarray
) -> ExampleEvents:
    """Return the events from `starts` on of each example.

    Args:
        packed: row groups as one.
        rows: (B,) the row of each example in them.
        starts: (B,) its first event in them.
        sizes: (B,) its number of events.
        row_ids: (B,) its id.
    """
    places, _ = stretches(starts, starts + sizes)
    columns: dict[str, Column] = {"items": packed.items}
    if packed.times is not None:
        columns["times"] = packed.times
    columns |= {f"feature {name}": column for name, column in packed.features.items()}
    return ExampleEvents(row_ids, sizes, take_all(columns, places), take_all(packed.user_features, rows))


def encode(examples: ExampleEvents, counts: list[int]) -> tuple[np.ndarray, list[int]]:
    """Return the bytes for all ranks, one after another, and their number for each rank.

    Args:
        examples: examples in the order of the ranks that get them.
        counts: number of examples for each rank.
    """
    rows = np.concatenate(([0], np.cumsum(counts)))
    events = np.concatenate(([0], np.cumsum(examples.sizes)))[rows].tolist()
    pieces: list[np.ndarray] = [np.zeros(0, dtype=np.uint8)]
    sent = []
    for rank in range(len(counts)):
        first, last = int(rows[rank]), int(rows[rank + 1])
        own = [*_bytes_of(examples.row_ids, first, last)]
        for column in examples.events.values():
            own += _bytes_of(column, events[rank], events[rank + 1])
        for column in examples.users.values():
            own += _bytes_of(column, first, last)
        sent.append(sum(piece.size for piece in own))
        pieces += own
    return np.concatenate(pieces), sent


def decode(payload: np.ndarray, counts: list[int], sizes: np.ndarray, template: ExampleEvents) -> ExampleEvents:
    """Return the examples that arrived, in the order of the ranks that sent them.

    Args:
        payload: the bytes of all ranks, one after another.
        counts: number of examples of each rank.
        sizes: number of events of each example.
        template: any examples with the same columns.
    """
    rows = np.concatenate(([0], np.cumsum(counts)))
    events = np.concatenate(([0], np.cumsum(sizes)))[rows].tolist()
    ids: list[np.ndarray] = [template.row_ids[:0]]
    of_events: list[Mapping[str, Column]] = [{name: _first(column, 0) for name, column in template.events.items()}]
    of_users: list[Mapping[str, Column]] = [{name: _first(column, 0) for name, column in template.users.items()}]
    reading = _Reading(payload)
    for rank, count in enumerate(counts):
        if not count:
            continue
        num_events = events[rank + 1] - events[rank]
        ids.append(reading.array(template.row_ids, count))
        of_events.append({name: reading.column(column, num_events) for name, column in template.events.items()})
        of_users.append({name: reading.column(column, count) for name, column in template.users.items()})
    assert reading.at == payload.size, "ranks have columns of different types"
    return ExampleEvents(np.concatenate(ids), sizes, concatenate_all(of_events), concatenate_all(of_users))


def _first(column: Column, count: int) -> Column:
    return column.sliced(0, count) if isinstance(column, Lists) else column[:count]


def _bytes_of(column: Column, start: int, stop: int) -> Iterator[np.ndarray]:
    """Yield the bytes of entries: of an array its values, of lists their lengths as int32 and their values."""
    if isinstance(column, Lists):
        lists = column.sliced(start, stop)
        yield from _bytes_of(np.diff(lists.offsets).astype(np.int32), 0, stop - start)
        yield from _bytes_of(lists.values, 0, lists.values.shape[0])
    else:
        yield np.ascontiguousarray(column[start:stop]).reshape(-1).view(np.uint8)


class _Reading:
    """Position in bytes that are read column after column."""

    def __init__(self, payload: np.ndarray) -> None:
        self._payload = payload
        self.at = 0

    def column(self, template: Column, count: int) -> Column:
        """Read entries of a column like the template."""
        if not isinstance(template, Lists):
            return self.array(template, count)
        lengths = self.array(np.zeros(0, dtype=np.int32), count)
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        return Lists(self.array(template.values, int(offsets[-1])), offsets)

    def array(self, template: np.ndarray, count: int) -> np.ndarray:
        """Read entries of an array like the template."""
        shape = (count, *template.shape[1:])
        start = self.at
        self.at += int(np.prod(shape)) * template.itemsize
        values: np.ndarray = self._payload[start : self.at].view(template.dtype).reshape(shape)
        return values
