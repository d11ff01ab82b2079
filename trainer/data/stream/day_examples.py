"""Examples of daily training: an example is a row on a day, with its impressions of that day.

The invariant: the examples of a day and their order depend on that day alone. Row groups without an impression on the
day are left out before the permutation. So an append, which adds row groups and days, does not change the order of an
earlier day.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.features.unique import unique_ids
from trainer.data.stream.days import Days, rows_of_day
from trainer.data.stream.examples import WINDOW_STEP, Chosen
from trainer.data.stream.order import STREAMS, Places, Position
from trainer.data.stream.row_groups import RowGroupReader


@dataclass(frozen=True)
class DayExamples:
    """All examples of a run with daily training."""

    # Looks up the rows with impressions on a day when their row groups are trained; one thread at a time.
    reader: RowGroupReader
    # The days, with counts of each.
    days: Days
    # Approximate number of events and impressions of an example, for the sizes of buffers.
    typical_events: int

    def epochs(self, num_epochs: int) -> range:
        """Return the numbers of all trained days. Each is trained once."""
        return self.days.numbers

    def of(self, day: int) -> "OneDay":
        """Return the examples of a day."""
        return OneDay(self, day)

    def number_of(self, position: Position) -> int:
        """Return a position as one number: examples trained since the first day."""
        return sum(self.days.num_rows(day) for day in range(self.days.first, position.epoch)) + position.trained

    def ids(self, chosen: Chosen) -> np.ndarray:
        """Return the id of each example, (n,) int64: the number of the row in the dataset, plus WINDOW_STEP times the day."""
        ids: np.ndarray = self.reader.first_rows[chosen.group] + chosen.row + chosen.window * WINDOW_STEP
        return ids

    def rows(self, day: int, group: int) -> np.ndarray:
        """Return the rows of the group with impressions on the day. They are looked up once while the group is read."""
        cached = self._rows
        if (day, group) not in cached:
            cached[day, group] = rows_of_day(self.reader, self.days.calendar, day, group)
            if len(cached) > 2 * STREAMS:
                cached.popitem(last=False)
        cached.move_to_end((day, group))
        return cached[day, group]

    @cached_property
    def _rows(self) -> OrderedDict[tuple[int, int], np.ndarray]:
        return OrderedDict()


@dataclass(frozen=True)
class OneDay:
    """The examples of one day."""

    # The examples of all days.
    all: DayExamples
    # The number of the day.
    day: int

    @cached_property
    def groups(self) -> np.ndarray:
        """Row groups that have examples on the day."""
        return self.all.days.groups(self.day)

    @cached_property
    def group_sizes(self) -> tuple[int, ...]:
        """Number of examples of each of these row groups."""
        return tuple(self.all.days.rows[self.day - self.all.days.first, self.groups].tolist())

    @property
    def num_examples(self) -> int:
        """Number of examples of the day."""
        return sum(self.group_sizes)

    def choose(self, places: Places) -> Chosen:
        """Return the rows at these places of the row groups with examples. The window of each is the day."""
        group = self.groups[places.group]
        groups, (which,) = unique_ids(group)
        rows = [self.all.rows(self.day, number) for number in groups.tolist()]
        bases = np.cumsum([0, *(of_group.size for of_group in rows)])
        row = np.concatenate([*rows, np.zeros(0, np.int64)])[bases[which] + places.place]
        return Chosen(places.position, group, row, np.full(row.size, self.day), None)


def day_examples(reader: RowGroupReader, days: Days, longest: int) -> DayExamples:
    """Return the examples of all days.

    Sizes are estimated from the mean history, of which a day reads the most recent part, and from the impressions of a
    day.

    Args:
        reader: reads row groups.
        days: the days.
        longest: most events that are gathered before the impressions of a day.
    """
    per_row = reader.num_events // max(1, sum(reader.group_rows))
    per_day = int(days.impressions.sum()) // max(1, int(days.rows.sum()))
    return DayExamples(reader, days, max(1, min(longest, per_row) + per_day))
