"""Rows of all workers of an evaluation, merged in the order of the dataset, some at a time. No torch.

Each worker writes its rows by ascending row_id. So a merge holds a few row groups of each part, and no list of all users.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.storage.parquet import open_parquet, parquet_metadata, parquet_schema

ROW_ID = "row_id"


def filled_parts(parts: Path) -> tuple[Path, ...]:
    """Return the workers' parts in a folder that have rows."""
    return tuple(path for path in sorted(parts.glob("rank-*.parquet")) if parquet_metadata(path).num_rows)


def schema_of_parts(paths: Sequence[Path]) -> pa.Schema:
    """Return the columns of parts. A worker without a value of a column writes another type than the others."""
    return pa.unify_schemas([parquet_schema(path).remove_metadata() for path in paths], promote_options="permissive")


def merged_blocks(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of all parts in blocks of ascending row_id, with all rows of each row_id. Rows of a block are not sorted.

    Args:
        paths: the parts.
        schema: the columns to read, with ROW_ID among them.
    """
    parts = [_Part(path, schema) for path in paths]
    while parts := [part for part in parts if part.fill()]:
        # Users up to here are complete: a later row group of a part may continue its last user.
        cut = min(part.complete_until for part in parts)
        pieces = [rows for part in parts if (rows := part.take(cut)).num_rows]
        if pieces:
            yield pa.concat_tables(pieces)
        else:
            min(parts, key=lambda part: part.complete_until).read_more()


class _Part:
    """The rows of one worker that are not merged yet, read as they are needed."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._footer = parquet_metadata(path)
        self._schema = schema
        self._groups = iter(range(self._footer.num_row_groups))
        self._rows = schema.empty_table()
        self._has_more = True

    @property
    def complete_until(self) -> float:
        """The largest row_id of which all rows are read; infinity at the end of the part."""
        return float(self._row_ids[-1]) - 1.0 if self._has_more else float("inf")

    @property
    def _row_ids(self) -> np.ndarray:
        ids: np.ndarray = self._rows.column(ROW_ID).to_numpy()
        return ids

    def fill(self) -> bool:
        """Read rows if there are none, and return whether there are some now."""
        while not self._rows.num_rows and self._has_more:
            self.read_more()
        return bool(self._rows.num_rows)

    def read_more(self) -> None:
        """Append the next row group."""
        number = next(self._groups, None)
        self._has_more = number is not None
        if number is not None:
            # It is opened for each row group: there may be more workers than files that a process may have open.
            with open_parquet(self._path, metadata=self._footer) as file:
                table = file.read_row_group(number, columns=self._schema.names, use_threads=False)
            rows = table.select(self._schema.names).cast(self._schema)
            self._rows = pa.concat_tables([self._rows, rows]).combine_chunks()
            assert (np.diff(self._row_ids) >= 0).all(), "a worker writes its rows by ascending row_id"

    def take(self, cut: float) -> pa.Table:
        """Remove and return the rows up to a row_id."""
        count = int(np.searchsorted(self._row_ids, cut, side="right"))
        taken = self._rows.slice(0, count)
        self._rows = self._rows.slice(count)
        return taken
