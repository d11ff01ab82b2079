"""Distinct values with their counts in ascending order, with memory for a limited number of them: an external merge sort.

Values are added up in memory until they are too many. Then they are sorted and written to a temporary file. At the end these runs
are merged, some values at a time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.hashing import whole
from trainer.data.prepare.read_pass import sum_values
from trainer.storage.mapped import mapped_table

MOST_VALUES = (
    1_000_000  # distinct values of a table in memory before a run is written, and rows of all runs in one merge
)
LEAST_ROWS = 1024  # of each run in one merge


class CountedValues:
    """Distinct values of one table with their counts, added up."""

    def __init__(self, folder: Path) -> None:
        """Start without values. folder: for temporary files."""
        self._folder = folder
        self._pending: list[pa.Table] = []
        self._runs: list[pa.Table] = []

    @property
    def kind(self) -> pa.DataType:
        """Type of the values. There must be some."""
        return (self._pending or self._runs)[0].schema.field("value").type

    def add(self, counts: pa.Table) -> None:
        """Add distinct values (columns value, count), of which some may be there already."""
        self._pending.append(counts)
        if sum(piece.num_rows for piece in self._pending) > 2 * MOST_VALUES:
            self._pending = [sum_values(self._pending)]
            if self._pending[0].num_rows > MOST_VALUES:
                self._end_run()

    def ascending(self) -> Iterator[pa.Table]:
        """Yield every value once with the sum of its counts, in blocks in ascending order (strings by their bytes)."""
        if self._runs:
            if self._pending:
                self._end_run()
            yield from _merged(self._runs)
        elif self._pending:
            yield _sorted(sum_values(self._pending))

    def _end_run(self) -> None:
        self._runs.append(mapped_table(_sorted(sum_values(self._pending)), self._folder))
        self._pending = []


def _sorted(values: pa.Table) -> pa.Table:
    """Return values in ascending order, as one record batch."""
    one_piece = pa.table({name: whole(values.column(name)) for name in values.column_names})
    return one_piece.take(pc.array_sort_indices(whole(one_piece.column("value"))))


def _merged(runs: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """Yield blocks of the values of sorted runs."""
    num_rows = max(LEAST_ROWS, MOST_VALUES // len(runs))
    places = [0] * len(runs)
    while True:
        windows = [run.slice(place, num_rows) for run, place in zip(runs, places, strict=True)]
        # Values up to here are complete: beyond its window, a run may have the next one.
        ends = [
            window.column("value")[-1].as_py()
            for run, place, window in zip(runs, places, windows, strict=True)
            if place + num_rows < run.num_rows
        ]
        if ends:
            cut = pa.scalar(min(ends), windows[0].schema.field("value").type)
            counts = [pc.sum(pc.less_equal(window.column("value"), cut)).as_py() or 0 for window in windows]
            windows = [window.slice(0, count) for window, count in zip(windows, counts, strict=True)]
        pieces = [window for window in windows if window.num_rows]
        if pieces:
            yield _sorted(sum_values(pieces))
        if not ends:
            return
        places = [place + window.num_rows for place, window in zip(places, windows, strict=True)]
