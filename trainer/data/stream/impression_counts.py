"""Counts of a ranker's training examples: impressions, the histories that are gathered for them, and pairs of both.

They equal those of trainer.data.stream.impressions, but are computed from columns alone: no event is read, and of impressions
only the times and the number of earlier events. One row group is in memory at a time.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.ranking.costs import candidate_pairs
from models.ranking.reach import Reach

if TYPE_CHECKING:  # torch and pyarrow, which nobody needs who only names what is counted
    from trainer.data.stream.days import Calendar
    from trainer.data.stream.row_groups import RowGroupReader


@dataclass(frozen=True)
class ImpressionCounts:
    """What one pass over the training impressions consists of."""

    num_examples: int  # those without impressions too
    impressions: int
    lengths: np.ndarray  # (B,) int64, events that are gathered for each example with impressions
    pairs: float  # of a candidate and an event that are computed (models.ranking.costs)


def count_impressions(reader: "RowGroupReader", reach: Reach, calendar: "Calendar | None" = None) -> ImpressionCounts:
    """Count the training examples of a dataset.

    Args:
        reader: reads impressions.
        reach: how far back scores look.
        calendar: where training is by days, which days there are. An example is then a row on a day, otherwise a row.

    Raises:
        UserError: a file cannot be read.
    """
    lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
    num_examples, impressions, pairs = 0, 0, 0.0
    for group, num_rows in enumerate(reader.group_rows):
        history_end, counts = _trained(reader, group, calendar)
        last = np.cumsum(counts)
        first_end, last_end = history_end[last - counts], history_end[last - 1]
        lengths.append(last_end - np.maximum(0, first_end - reach.receptive))
        pairs += candidate_pairs(counts, history_end, reach.attended)
        impressions += int(counts.sum())
        num_examples += num_rows if calendar is None else counts.size
    return ImpressionCounts(num_examples, impressions, np.concatenate(lengths), pairs)


def _trained(reader: "RowGroupReader", group: int, calendar: "Calendar | None") -> tuple[np.ndarray, np.ndarray]:
    """Return the events before each training impression (M,), and how many of these each example has (B,), none of them 0."""
    shown, starts, ends = reader.shown(group, "history_end", "time")
    row = np.repeat(np.arange(starts.size), ends - starts)
    if calendar is None:
        train_end, _ = reader.cuts(group)
        day = np.zeros_like(row)
        trained = np.arange(row.size) - np.repeat(starts, ends - starts) < np.repeat(train_end, ends - starts)
    else:
        day = calendar.numbers_of(shown["time"])
        trained = day < calendar.stop
        if calendar.earliest is not None:
            trained &= shown["time"] >= calendar.earliest
    row, day = row[trained], day[trained]
    first = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(day, prepend=0) != 0))
    return shown["history_end"][trained].astype(np.int64), np.diff(first, append=row.size)
