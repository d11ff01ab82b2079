"""Counts of a ranker's training examples: impressions, the histories gathered for them, and pairs of both.

They equal those of trainer.data.stream.impressions, but are computed from columns alone. No event is read, and of impressions only
the times and the numbers of earlier events. One row group is in memory at a time.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.ranking.costs import candidate_pairs
from models.ranking.reach import Reach

if TYPE_CHECKING:  # they import torch and pyarrow, which annotations do not need
    from trainer.data.stream.days import Calendar
    from trainer.data.stream.row_groups import RowGroupReader


@dataclass(frozen=True)
class ImpressionCounts:
    """Counts of one pass over the training impressions."""

    # Examples, including those without impressions.
    num_examples: int
    # Training impressions.
    impressions: int
    # (B,) int64 events that are gathered for each example with impressions.
    lengths: np.ndarray
    # Computed pairs of a candidate and an event (models.ranking.costs).
    pairs: float


def count_impressions(reader: "RowGroupReader", reach: Reach, calendar: "Calendar | None" = None) -> ImpressionCounts:
    """Count the training examples of a dataset.

    Args:
        reader: reads impressions.
        reach: how far back scores depend on events.
        calendar: days of daily training. Then an example is a row on a day, otherwise a row.

    Raises:
        UserError: if a file cannot be read.
    """
    lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
    num_examples = 0
    impressions = 0
    pairs = 0.0
    for group, num_rows in enumerate(reader.group_rows):
        history_end, counts = _trained(reader, group, calendar)
        last = np.cumsum(counts)
        first_end = history_end[last - counts]
        last_end = history_end[last - 1]
        lengths.append(last_end - np.maximum(0, first_end - reach.receptive))
        pairs += candidate_pairs(counts, history_end, reach.attended)
        impressions += int(counts.sum())
        num_examples += num_rows if calendar is None else counts.size
    return ImpressionCounts(num_examples, impressions, np.concatenate(lengths), pairs)


def _trained(reader: "RowGroupReader", group: int, calendar: "Calendar | None") -> tuple[np.ndarray, np.ndarray]:
    """Return events before each training impression (M,), and the number of impressions of each example (B,), without zeros."""
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
    row = row[trained]
    day = day[trained]
    first = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(day, prepend=0) != 0))
    return shown["history_end"][trained].astype(np.int64), np.diff(first, append=row.size)
