"""What training by days counts: an example is a row on a day, with its impressions of that day.

The invariant: the examples of a day and their order follow from that day alone. Row groups without an impression on it are left
out before anything is permuted, so an append, which adds row groups and days, changes the order of no day before.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.features.unique import distinct_ids
from trainer.data.stream.days import Days, rows_of_day
from trainer.data.stream.examples import WINDOW_STEP, Chosen
from trainer.data.stream.order import MAX_STREAMS, Places, Position
from trainer.data.stream.row_groups import RowGroupReader


@dataclass(frozen=True)
class DayExamples:
    """All examples of a run by days. typical_events: about how many events and impressions one has, to choose sizes of buffers by.

    reader: looks up which rows have impressions on a day, when their row groups are trained; one thread at a time.
    """

    reader: RowGroupReader
    days: Days
    typical_events: int

    def epochs(self, num_epochs: int) -> range:
        """The numbers of all days that are trained, each once."""
        return self.days.numbers

    def of(self, day: int) -> "OneDay":
        """The examples of a day."""
        return OneDay(self, day)

    def number_of(self, position: Position) -> int:
        """A position as one number: examples trained since the first day."""
        return sum(self.days.num_rows(day) for day in range(self.days.first, position.epoch)) + position.trained

    def ids(self, chosen: Chosen) -> np.ndarray:
        """(n,) int64: the number of the row in the dataset, and WINDOW_STEP times that of the day."""
        ids: np.ndarray = self.reader.first_rows[chosen.group] + chosen.row + chosen.window * WINDOW_STEP
        return ids

    def rows(self, day: int, group: int) -> np.ndarray:
        """The rows of the group that have impressions on the day; looked up once while the group is being read."""
        held = self._rows
        if (day, group) not in held:
            held[day, group] = rows_of_day(self.reader, self.days.calendar, day, group)
            if len(held) > 2 * MAX_STREAMS:
                held.popitem(last=False)
        held.move_to_end((day, group))
        return held[day, group]

    @cached_property
    def _rows(self) -> OrderedDict[tuple[int, int], np.ndarray]:
        return OrderedDict()


@dataclass(frozen=True)
class OneDay:
    """The examples of one day: `group_sizes` of the row groups that have any."""

    all: DayExamples
    day: int

    @cached_property
    def groups(self) -> np.ndarray:
        return self.all.days.groups(self.day)

    @cached_property
    def group_sizes(self) -> tuple[int, ...]:
        return tuple(self.all.days.rows[self.day - self.all.days.first, self.groups].tolist())

    @property
    def num_examples(self) -> int:
        return sum(self.group_sizes)

    def choose(self, places: Places) -> Chosen:
        """The rows at these places of the row groups that have any. The window of each is the day."""
        group = self.groups[places.group]
        found, (which,) = distinct_ids(group)
        rows = [self.all.rows(self.day, number) for number in found.tolist()]
        bases = np.cumsum([0, *(of_group.size for of_group in rows)])
        row = np.concatenate([*rows, np.zeros(0, np.int64)])[bases[which] + places.place]
        return Chosen(places.position, group, row, np.full(row.size, self.day), None)


def day_examples(reader: RowGroupReader, days: Days, longest: int) -> DayExamples:
    """Sizes are guessed from the mean history, of which a day sees the most recent part, and from the impressions of a day.

    longest: how many events before an impression of the day are gathered at most.
    """
    per_row = reader.num_events // max(1, sum(reader.group_rows))
    per_day = int(days.impressions.sum()) // max(1, int(days.rows.sum()))
    return DayExamples(reader, days, max(1, min(longest, per_row) + per_day))
