"""The training period cut into days: their bounds, and the rows that have impressions on each.

Days are numbered from a fixed moment, so a day has the same number in any logs. The invariant: counts of a day depend
on the impressions of that day alone. So later logs do not change an earlier day.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from models.config import ModelConfig
from sharding.world import World
from trainer.config.train import DaysConfig
from trainer.data.dataset.hashing import mix
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.splits import resolve_time, time_as_text
from trainer.data.inputs import ticks_per_second
from trainer.data.stream.row_groups import RowGroupReader
from trainer.errors import UserError

MAX_DAYS = 10_000
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Calendar:
    """Bounds of the days, in the unit of the dataset's times. Day n starts at origin + n * length."""

    # Start of day 0.
    origin: int
    # Length of a day.
    length: int
    # Impressions before it are not trained; None if all are.
    earliest: int | None
    # Number of the day with which the validation period begins.
    stop: int
    # End of the validation period; no day goes beyond it.
    end: int
    # Ticks per second, or None if the times are not those of a clock.
    ticks: int | None

    def bounds(self, day: Any) -> tuple[Any, Any]:
        """Return the first moment of a day, or of many, and the first moment after it."""
        begin = self.origin + day * self.length
        return begin, np.minimum(begin + self.length, self.end)

    def numbers_of(self, times: np.ndarray) -> np.ndarray:
        """Return the day of each time."""
        numbers: np.ndarray = (times - self.origin) // self.length
        return numbers

    def name_of(self, day: int) -> str:
        """Return the first moment of a day as text for people."""
        begin = int(self.bounds(day)[0])
        if self.ticks is None:
            return str(begin)
        return time_as_text(begin * 10**6 // self.ticks, "timestamp").removesuffix(" 00:00:00")


def calendar_of(config: DaysConfig, manifest: Manifest, model: ModelConfig) -> Calendar:
    """Return the days of a config.

    Raises:
        UserError: if the times do not fit the settings, or the validation period does not begin with a day.
    """
    kind = manifest.source["time"]["kind"]
    ticks = _ticks(manifest, model)
    length = _length(config, manifest, ticks)
    stop = resolve_time(manifest.split["validation_time"], "split.validation_time", kind)
    end = resolve_time(manifest.split["test_time"], "split.test_time", kind)
    start = None if config.start is None else resolve_time(config.start, "train.days.start", kind)
    calendar = Calendar(start or 0, length, start, 0, end, ticks)
    number, beyond = divmod(stop - calendar.origin, length)
    if beyond:
        before, after = calendar.name_of(number), calendar.name_of(number + 1)
        raise UserError(
            f"split.validation_time = {manifest.split['validation_time']!r} is within a day of train.days (length = "
            f"{config.length!r}), so that day would be trained in part; days begin at {before} and {after}: move it to one of "
            "them, or set train.days.start to a moment at which a day begins"
        )
    return replace(calendar, stop=number)


def _ticks(manifest: Manifest, model: ModelConfig) -> int | None:
    try:
        return ticks_per_second(manifest, model)
    except UserError:
        return None


def _length(config: DaysConfig, manifest: Manifest, ticks: int | None) -> int:
    """Return the length of a day in the unit of the dataset's times."""
    span = manifest.source["time"]
    if isinstance(config.length, int):
        if span["kind"] == "timestamp":
            raise UserError(
                f"train.days.length = {config.length} is a plain number, and the logs have timestamps; write a unit, as in "
                'train.days.length = "1d"'
            )
        return config.length
    if ticks is None:
        raise UserError(
            f"train.days.length = {config.length!r}: the times of the logs ({span['first']} to {span['last']}) do not look like "
            "those of a clock; write the length as an integer in their unit, or set model.inputs.time_unit"
        )
    return int(config.length[:-1]) * _SECONDS[config.length[-1]] * ticks


@dataclass(frozen=True)
class Days:
    """Counts of each day. The last entry is the first day of the validation period, which is not trained."""

    # Bounds of the days.
    calendar: Calendar
    # Number of the first trained day.
    first: int
    # (days + 1, groups) int32, rows of each row group with impressions on the day.
    rows: np.ndarray
    # (days + 1,) int64.
    impressions: np.ndarray
    # (days + 1,) int64, a hash of the impressions of the day, at the resolution of row groups.
    content: np.ndarray

    @property
    def stop(self) -> int:
        """Number of the first day that is not trained."""
        return self.calendar.stop

    @cached_property
    def numbers(self) -> range:
        """Numbers of the trained days."""
        return range(self.first, self.stop)

    def groups(self, day: int) -> np.ndarray:
        """Return the row groups with impressions on the day, ascending."""
        return np.flatnonzero(self.rows[day - self.first])

    def num_rows(self, day: int) -> int:
        """Return the number of rows with impressions on the day."""
        return int(self.rows[day - self.first].sum())

    def impressions_before(self, day: int) -> int:
        """Return the number of impressions of all earlier days."""
        return int(self.impressions[: max(0, day - self.first)].sum())

    def next_with_impressions(self, day: int) -> int | None:
        """Return the first day from this one on with impressions, or None. The first validation day counts too."""
        later = np.flatnonzero(self.impressions[max(0, day - self.first) :])
        return max(day, self.first) + int(later[0]) if later.size else None


@dataclass(frozen=True)
class _Counted:
    """An entry for each row group and day with impressions. All arrays are (n,) int64."""

    group: np.ndarray
    day: np.ndarray
    rows: np.ndarray
    impressions: np.ndarray


def count_days(reader: RowGroupReader, calendar: Calendar, world: World) -> Days:
    """Count rows and impressions of all days. Collective: each rank reads the times of its row groups once.

    Raises:
        UserError: on all ranks, if a file cannot be read, there is nothing to train, or there are too many days.
    """
    num_groups = len(reader.group_rows)
    counted = None
    complaint = None
    try:
        counted = _counted(reader, calendar, range(world.rank, num_groups, world.world_size))
    except UserError as error:
        complaint = str(error)
    own = (complaint, None if counted is None else _first_day(counted, calendar))
    of_ranks: list[Any] = world.gather_objects(own)
    complaints = [text for text, _ in of_ranks if text is not None]
    if complaints:
        raise UserError(complaints[0])
    assert counted is not None
    firsts = [day for _, day in of_ranks if day is not None]
    if not firsts:
        raise UserError(
            f"train.days: no impression was shown before split.validation_time, {calendar.name_of(calendar.stop)}, and from "
            "train.days.start on; nothing can be trained"
        )
    first = min(firsts)
    if calendar.stop - first > MAX_DAYS:
        raise UserError(
            f"train.days: {calendar.stop - first:,} days from {calendar.name_of(first)} to {calendar.name_of(calendar.stop)}, and "
            f"the limit is {MAX_DAYS:,}; raise train.days.length, or leave out earlier impressions with train.days.start"
        )
    num_days = calendar.stop - first + 1
    rows = np.zeros((num_days, num_groups), dtype=np.int32)
    impressions, content = np.zeros((2, num_days), dtype=np.int64)
    day = counted.day - first
    rows[day, counted.group] = counted.rows
    np.add.at(impressions, day, counted.impressions)
    np.add.at(content, day, _hashed(counted))
    summed = [world.sum(torch.from_numpy(part).to(world.device)).cpu().numpy() for part in (rows, impressions, content)]
    return Days(calendar, first, *summed)


def _counted(reader: RowGroupReader, calendar: Calendar, groups: Iterable[int]) -> _Counted:
    pieces = [np.zeros((4, 0), dtype=np.int64)]
    for group in groups:
        row, day = _rows_and_days(reader, calendar, group)
        first = np.ones(row.size, dtype=np.bool_)
        first[1:] = (row[1:] != row[:-1]) | (day[1:] != day[:-1])
        days, impressions = np.unique(day, return_counts=True)
        rows = np.unique(day[first], return_counts=True)[1]
        pieces.append(np.stack((np.full(days.size, group), days, rows, impressions)))
    return _Counted(*np.concatenate(pieces, axis=1))


def _rows_and_days(reader: RowGroupReader, calendar: Calendar, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row and day of every impression of the group that belongs to a day, ascending by both."""
    shown, starts, ends = reader.shown(group, "time")
    times = shown["time"]
    rows = np.repeat(np.arange(starts.size), ends - starts)
    inside = times < calendar.bounds(calendar.stop)[1]
    if calendar.earliest is not None:
        inside &= times >= calendar.earliest
    return rows[inside], calendar.numbers_of(times[inside])


def rows_of_day(reader: RowGroupReader, calendar: Calendar, day: int, group: int) -> np.ndarray:
    """Return the rows of the group that have impressions on the day, ascending."""
    rows, days = _rows_and_days(reader, calendar, group)
    return np.unique(rows[days == day])


def _first_day(counted: _Counted, calendar: Calendar) -> int | None:
    trained = counted.day[counted.day < calendar.stop]
    return int(trained.min()) if trained.size else None


def _hashed(counted: _Counted) -> np.ndarray:
    """Return a hash per entry, to be summed over row groups; any append to a row group changes the sum."""
    value = np.zeros(counted.group.size, dtype=np.uint64)
    for column in (counted.group, counted.rows, counted.impressions):
        value = mix(value ^ column.astype(np.uint64))
    return value.view(np.int64)


def shown_between(
    times: np.ndarray, starts: np.ndarray, ends: np.ndarray, begin: np.ndarray | int, end: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the impressions shown in [begin, end): (first, first after), counted within the row.

    Args:
        times: ascending within each row, from starts[r] to ends[r].
        starts: first impression of each row.
        ends: end of the impressions of each row.
        begin: first moment.
        end: first moment after.
    """
    return first_from(times, starts, ends, begin) - starts, first_from(times, starts, ends, end) - starts


def first_from(times: np.ndarray, starts: np.ndarray, ends: np.ndarray, moment: np.ndarray | int) -> np.ndarray:
    """Return for each row, from starts[r] to ends[r], the first place with a time at or after the moment.

    A binary search over all rows at once.
    """
    low, high = starts.copy(), ends.copy()
    while (low < high).any():
        middle = (low + high) // 2
        before = (low < high) & (times.take(middle, mode="clip") < moment)
        low = np.where(before, middle + 1, low)
        high = np.where(before, high, np.maximum(low, middle))
    return low
