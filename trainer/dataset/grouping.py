"""From events to histories: partition by user, then sort, deduplicate, cut and encode one partition.

Pure functions over Arrow tables and numpy arrays, without a Python loop over rows. They keep one invariant: the result
is a function of the events and their order in the log alone; neither blocks, tasks, processes nor platforms change a
bit of it.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.config import GlobalTimeConfig, LeaveOneOutConfig, SplitConfig
from trainer.dataset.manifest import UNKNOWN_ID
from trainer.errors import UserError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class LeaveOneOut:
    """The last event tests and the one before validates, for users with at least `min_events`."""

    min_events: int


@dataclass(frozen=True)
class TimeBounds:
    """Events before `validation_time` train, those before `test_time` validate, the rest test (unit of the dataset)."""

    validation_time: int
    test_time: int


Cuts = LeaveOneOut | TimeBounds


@dataclass(frozen=True)
class GroupCounts:
    """What one partition holds, or the sum over several; names as in trainer.dataset.manifest.Counts."""

    rows_kept: int = 0
    duplicates: int = 0
    num_users: int = 0
    train_events: int = 0
    validation_targets: int = 0
    test_targets: int = 0
    users_without_targets: int = 0
    users_not_evaluated: int = 0
    unknown_items: int = 0
    tied_times: int = 0


@dataclass(frozen=True)
class ItemCounts:
    """Events of each item that occurs, ascending by id; ids from 1, the unknown left out."""

    ids: Ints
    num_events: Ints
    num_train_events: Ints


@dataclass(frozen=True)
class Grouped:
    """One partition as rows of the dataset. `duplicates` are the positions of dropped events in the table given."""

    histories: pa.Table
    duplicates: Ints
    counts: GroupCounts
    items: ItemCounts


def resolve_cuts(split: SplitConfig, time_kind: Literal["integer", "timestamp"]) -> Cuts:
    """The split in numbers. Raises UserError if its times don't have the form of the time column, or cannot be read."""
    match split:
        case LeaveOneOutConfig():
            return LeaveOneOut(split.min_events)
        case GlobalTimeConfig():
            bounds = TimeBounds(
                _resolve_time(split.validation_time, "split.validation_time", time_kind),
                _resolve_time(split.test_time, "split.test_time", time_kind),
            )
            if bounds.validation_time >= bounds.test_time:
                raise UserError(
                    f"split.validation_time = {split.validation_time!r} is not before test_time = {split.test_time!r}"
                )
            return bounds


def sum_counts(counts: Iterable[GroupCounts]) -> GroupCounts:
    return GroupCounts(*map(sum, zip(*map(astuple, counts), strict=True)))


def partition_events(events: pa.Table, num_partitions: int) -> list[pa.RecordBatch]:
    """Split events (any columns, `user` without nulls) by the hash of the user; a partition keeps their order."""
    partition = (hash_ids(events.column("user")) % np.uint64(num_partitions)).astype(np.uint16)
    ordered = events.take(pa.array(np.argsort(partition, kind="stable")))
    whole = pa.RecordBatch.from_arrays([_whole(column) for column in ordered.columns], schema=ordered.schema)
    ends = np.cumsum(np.bincount(partition, minlength=num_partitions)).tolist()
    return [whole.slice(start, end - start) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def hash_ids(ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """64-bit hash of integers or non-empty strings, the same in every process, on every platform, for ever.

    Integers go through the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
    https://doi.org/10.1145/2660193.2660195). Of a string, its bytes are first summed with pseudo-random weights by
    position (multilinear hashing), modulo 2^64.
    """
    if not len(ids):
        return np.zeros(0, np.uint64)
    if not pa.types.is_string(ids.type):
        return _mix(ids.to_numpy().astype(np.int64).view(np.uint64))
    encoded = _dictionary(ids)
    values, codes = encoded.dictionary, encoded.indices.to_numpy()
    offsets = np.frombuffer(values.buffers()[1], np.int32, len(values) + 1, values.offset * 4).astype(np.int64)
    letters = np.frombuffer(values.buffers()[2], np.uint8, offsets[-1] - offsets[0], offsets[0])
    starts = offsets[:-1] - offsets[0]
    lengths = np.diff(offsets)
    weights = _mix(np.arange(1, lengths.max(initial=0) + 1, dtype=np.uint64))
    positions = np.arange(len(letters)) - np.repeat(starts, lengths)
    sums = np.add.reduceat(letters.astype(np.uint64) * weights[positions], starts)
    hashes: npt.NDArray[np.uint64] = _mix(sums + lengths.astype(np.uint64))[codes]
    return hashes


def sort_vocabulary(values: pa.ChunkedArray) -> pa.Array:
    """Distinct values in ascending order (strings by their bytes); row k is id k + 1."""
    distinct = pc.unique(values)
    return distinct.take(pc.array_sort_indices(distinct))


def group_events(events: pa.Table, vocabulary: pa.Array, cuts: Cuts, drop_duplicates: bool) -> Grouped:
    """Turn the events of some users (user, item, time; in the order of the log) into one row per user.

    Rows are ascending by user; a history is ascending by time, ties in the order of the log. The table has the columns
    of trainer/dataset/manifest.py. Of events equal in user, item and time the first stays, if `drop_duplicates`.
    """
    users, user_codes = _rank(events.column("user"))
    items = _dictionary(events.column("item"))
    item_codes, times = items.indices.to_numpy().astype(np.int64), events.column("time").to_numpy()

    order = stable_order(times)
    order = order[stable_order(user_codes[order])]
    duplicates = np.zeros(0, np.int64)
    if drop_duplicates:
        repeated = _repeated(user_codes[order], times[order], item_codes[order])
        duplicates, order = np.sort(order[repeated]), order[~repeated]

    times, user_codes = times[order], user_codes[order]
    ids = _ids_of(items.dictionary, vocabulary)[item_codes[order]]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user_codes, minlength=len(users)))])
    train_end, validation_end = cut_histories(times, offsets, cuts)
    position = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets))
    trains = position < np.repeat(train_end, np.diff(offsets))
    histories = _histories(users, ids, times, offsets, train_end, validation_end)
    lengths = np.diff(offsets)
    counts = GroupCounts(
        rows_kept=len(ids),
        duplicates=len(duplicates),
        num_users=len(users),
        train_events=int(train_end.sum()),
        validation_targets=int((validation_end - train_end).sum()),
        test_targets=int((lengths - validation_end).sum()),
        users_without_targets=int((train_end < 2).sum()),
        users_not_evaluated=int((lengths < cuts.min_events).sum()) if isinstance(cuts, LeaveOneOut) else 0,
        unknown_items=int(((ids == UNKNOWN_ID) & ~trains).sum()),
        tied_times=int(_same_as_before(user_codes, times).sum()),
    )
    return Grouped(histories, duplicates, counts, _count_items(ids, trains))


def cut_histories(times: Ints, offsets: Ints, cuts: Cuts) -> tuple[Ints, Ints]:
    """`train_end` and `validation_end` of every history, relative to its start; `times` ascend within each."""
    lengths = np.diff(offsets)
    match cuts:
        case LeaveOneOut():
            held_out = (lengths >= cuts.min_events).astype(np.int64)
            return lengths - 2 * held_out, lengths - held_out
        case TimeBounds():
            if not len(lengths):
                return lengths, lengths
            before = [times < bound for bound in (cuts.validation_time, cuts.test_time)]
            train_end, validation_end = (np.add.reduceat(b.astype(np.int64), offsets[:-1]) for b in before)
            return train_end, validation_end


def stable_order(keys: Ints) -> Ints:
    """The stable sorting permutation of integers: a radix sort by 16 bits at a time, where numpy takes linear time.

    Several times faster than a comparison sort for the narrow ranges that ids and times have within a partition.
    """
    if len(keys) < 2 or (keys[1:] >= keys[:-1]).all():
        return np.arange(len(keys))
    lowest = keys.min()
    rest = (keys - lowest).view(np.uint64)  # the difference may exceed an int64 and wraps into the right uint64
    num_digits = (int(keys.max()) - int(lowest)).bit_length() // 16 + 1
    order = np.argsort(rest.astype(np.uint16), kind="stable")
    for digit in range(1, num_digits):
        order = order[np.argsort((rest >> np.uint64(16 * digit)).astype(np.uint16)[order], kind="stable")]
    return order


def _resolve_time(value: int | str, setting: str, time_kind: str) -> int:
    if isinstance(value, int) and time_kind == "integer":
        return value
    if isinstance(value, int):
        raise UserError(
            f"{setting} = {value} is an integer, but the time column holds timestamps or dates; "
            f'write it as an ISO date or date and time in UTC, for example {setting} = "2024-05-01"'
        )
    if time_kind == "integer":
        raise UserError(
            f"{setting} = {value!r} is a date, but the time column holds integers; "
            "write it as an integer in the unit of that column"
        )
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise UserError(
            f'{setting} = {value!r} is no ISO date or date and time, such as "2024-05-01T12:00:00"'
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _whole(column: pa.ChunkedArray) -> Any:
    chunks = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.array([], column.type)])


def _dictionary(column: pa.ChunkedArray) -> Any:
    """One DictionaryArray of the whole column: distinct values and codes; strings never become Python objects."""
    return _whole(column).dictionary_encode()


def _rank(column: pa.ChunkedArray) -> tuple[pa.Array, Ints]:
    """Distinct values in ascending order, and each row's place among them."""
    encoded = _dictionary(column)
    ascending = pc.array_sort_indices(encoded.dictionary)
    place = np.empty(len(ascending), np.int64)
    place[ascending.to_numpy()] = np.arange(len(ascending))
    return encoded.dictionary.take(ascending), place[encoded.indices.to_numpy()]


def _same_as_before(users: Ints, times: Ints) -> Bools:
    same = np.zeros(len(users), np.bool_)
    same[1:] = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    return same


def _repeated(users: Ints, times: Ints, items: Ints) -> Bools:
    """Which events, sorted by user and time, repeat an earlier one. Only ties can, so only they are sorted by item."""
    same = _same_as_before(users, times)
    repeated = np.zeros(len(users), np.bool_)
    tied = np.flatnonzero(same | np.append(same[1:], False))
    if len(tied):
        tie: Ints = np.cumsum(~same, dtype=np.int64)
        order = tied[stable_order(items[tied])]
        order = order[stable_order(tie[order])]
        equal = (tie[order][1:] == tie[order][:-1]) & (items[order][1:] == items[order][:-1])
        repeated[order[1:][equal]] = True
    return repeated


def _ids_of(values: pa.Array, vocabulary: pa.Array) -> npt.NDArray[np.int32]:
    rows = pc.fill_null(pc.index_in(values, value_set=vocabulary), UNKNOWN_ID - 1).to_numpy()
    ids: npt.NDArray[np.int32] = (rows + 1).astype(np.int32)
    return ids


def _histories(
    users: pa.Array, ids: npt.NDArray[np.int32], times: Ints, offsets: Ints, train_end: Ints, validation_end: Ints
) -> pa.Table:
    starts = pa.array(offsets.astype(np.int32))
    return pa.table(
        {
            "user": users,
            "item": pa.ListArray.from_arrays(starts, pa.array(ids)),
            "time": pa.ListArray.from_arrays(starts, pa.array(times)),
            "train_end": pa.array(train_end.astype(np.int32)),
            "validation_end": pa.array(validation_end.astype(np.int32)),
        }
    )


def _count_items(ids: npt.NDArray[np.int32], trains: Bools) -> ItemCounts:
    num_events = np.bincount(ids)
    num_train_events = np.bincount(ids[trains], minlength=len(num_events))
    num_events[:1] = 0
    found = np.flatnonzero(num_events)
    return ItemCounts(found, num_events[found], num_train_events[found])
