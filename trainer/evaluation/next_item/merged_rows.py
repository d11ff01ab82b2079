"""Rows of all workers of a next-item evaluation, merged in the order of the dataset, some at a time. No torch.

Each worker writes its rows by ascending row_id. So a merge holds a few row groups of each part, and no list of all users.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.errors import UserError
from trainer.evaluation.next_item.queries import one_row_per_user
from trainer.storage.parquet import open_parquet, parquet_metadata, parquet_schema

ROW_ID = "row_id"


@dataclass(frozen=True)
class MergedRows:
    """A row per user, sorted by row_id."""

    paths: tuple[Path, ...]
    """The parts of the workers that have rows."""
    schema: pa.Schema
    """The columns of the parts."""

    @cached_property
    def num_rows(self) -> int:
        """The number of users."""
        return sum(block.num_rows for block in self.blocks([]))

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.schema.names)

    def list_size(self, name: str) -> int:
        """Return the length of the lists of a column, of each query."""
        return int(self.schema.field(name).type.list_size)

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the users in blocks, with row_id and the given columns. The size of blocks depends on the parts."""
        columns = list(dict.fromkeys((ROW_ID, *names)))
        schema = pa.schema([self.schema.field(name) for name in columns])
        parts = [_Part(path, schema) for path in self.paths]
        while parts := [part for part in parts if part.fill()]:
            # Users up to here are complete: a later row group of a part may continue its last user.
            cut = min(part.complete_until for part in parts)
            pieces = [rows for part in parts if (rows := part.take(cut)).num_rows]
            if pieces:
                yield one_row_per_user(pa.concat_tables(pieces).sort_by(ROW_ID).combine_chunks())
            else:
                min(parts, key=lambda part: part.complete_until).read_more()

    def take(self, places: Iterable[int]) -> pa.Table:
        """Return the users at these places, ascending, with all columns."""
        wanted = np.asarray(sorted(places), dtype=np.int64)
        found = []
        first = 0
        for block in self.blocks(self.column_names):
            inside = wanted[(wanted >= first) & (wanted < first + block.num_rows)] - first
            found.append(block.take(pa.array(inside)))
            first += block.num_rows
        return pa.concat_tables(found)

    def to_table(self, names: Sequence[str] | None = None) -> pa.Table:
        """Return all users as one table, for columns that need little memory."""
        chosen = self.column_names if names is None else list(names)
        whole = pa.concat_tables(self.blocks(chosen)).combine_chunks()
        return whole if ROW_ID in chosen else whole.drop_columns([ROW_ID])


def merge_parts(parts: Path) -> MergedRows:
    """Return the rows of all workers. Raises UserError if there are none."""
    paths = tuple(path for path in sorted(parts.glob("rank-*.parquet")) if parquet_metadata(path).num_rows)
    if not paths:
        raise UserError(
            "evaluation: no user has held-out events in this split with events before them; "
            "use more logs, or move split.validation_time and split.test_time"
        )
    # A worker without a value of a column writes another type than the others.
    schema = pa.unify_schemas([parquet_schema(path).remove_metadata() for path in paths], promote_options="permissive")
    return MergedRows(paths, schema)


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
