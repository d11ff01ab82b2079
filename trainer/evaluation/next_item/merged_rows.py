"""Rows of all workers of a next-item evaluation, merged in the order of the dataset, some at a time. No torch.

The rows of a user become one (trainer.evaluation.next_item.queries).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.errors import UserError
from trainer.evaluation.merged_parts import ROW_ID, filled_parts, merged_blocks, schema_of_parts
from trainer.evaluation.next_item.queries import one_row_per_user


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
        for rows in merged_blocks(self.paths, schema):
            yield one_row_per_user(rows.sort_by(ROW_ID).combine_chunks())

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
    paths = filled_parts(parts)
    if not paths:
        raise UserError(
            "evaluation: no user has held-out events in this split with events before them; "
            "use more logs, or move split.validation_time and split.test_time"
        )
    return MergedRows(paths, schema_of_parts(paths))
