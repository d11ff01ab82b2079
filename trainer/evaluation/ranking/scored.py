"""All scored impressions of a split, merged from the workers' parts some at a time. No torch.

The columns that figures are computed from are in temporary files (trainer.evaluation.spooled), the others are read from the parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from trainer.errors import UserError
from trainer.evaluation.merged_parts import ROW_ID, filled_parts, merged_blocks, schema_of_parts
from trainer.evaluation.ranking.judged import Judged
from trainer.evaluation.spooled import Spool, blocks

MODEL = "model"
PLACE = "place"
FEATURE_PREFIX = "slice."  # of the columns of features


class Rows(Protocol):
    """A row per impression in the order of the dataset, with the columns of evaluate.write_scores."""

    @property
    def schema(self) -> pa.Schema:
        """The columns."""

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield columns of all rows in blocks, each with all impressions of some users."""


@dataclass(frozen=True)
class MergedParts:
    """The rows of all workers, sorted by row and place."""

    paths: tuple[Path, ...]
    """The parts of the workers that have rows."""
    schema: pa.Schema
    """The columns of the parts."""

    def blocks(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield columns of all rows in blocks, each with all impressions of some users. The size of blocks depends on the parts."""
        schema = pa.schema([self.schema.field(name) for name in dict.fromkeys((ROW_ID, PLACE, *names))])
        for rows in merged_blocks(self.paths, schema):
            yield rows.sort_by([(ROW_ID, "ascending"), (PLACE, "ascending")]).combine_chunks().select(list(names))


@dataclass(frozen=True)
class Impressions:
    """All scored impressions of a split, in the order of the dataset."""

    rows: Rows
    """A row per impression."""
    labels: tuple[str, ...]
    """The labels of the model."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self.rows.schema.names)

    @property
    def size(self) -> int:
        """The number of impressions."""
        return self.column(ROW_ID).size

    @cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        """The columns of numbers, without those of features: one pass over the rows."""
        fields = [field for field in self.rows.schema if pa.types.is_primitive(field.type)]
        names = [field.name for field in fields if field.name != "user" and not field.name.startswith(FEATURE_PREFIX)]
        spools: dict[str, Spool] = {}
        for table in self.rows.blocks(names):
            for name in names:
                values = table.column(name).to_numpy()
                spools.setdefault(name, Spool(values.dtype)).append(values)
        return {name: spool.array() for name, spool in spools.items()}

    def column(self, name: str) -> np.ndarray:
        """Return a column of numbers, (M,)."""
        return self._numbers[name]

    def judged(
        self, label: str, source: str = MODEL, inside: np.ndarray | None = None, outside: bool = False
    ) -> Judged:
        """Return the impressions on which a label is defined.

        Args:
            label: the label.
            source: MODEL, or the name of a baseline, for its scores.
            inside: (M,) bool, the impressions to choose from; None for all.
            outside: choose from the others instead.
        """
        logit = f"logit.{label}" if source == MODEL else f"logit.{source}.{label}"
        columns = [self.column(name) for name in (ROW_ID, logit, "weight")]
        users, scores, weights = (Spool(dtype) for dtype in (columns[0].dtype, np.float64, np.float64))
        positives = Spool(np.bool_)
        outcomes = self.column(f"label.{label}")
        for block in blocks(outcomes.size):
            outcome = outcomes[block]
            wanted = ~np.isnan(outcome)
            if inside is not None:
                wanted &= inside[block] != outside
            for spool, values in zip((users, scores, weights), columns, strict=True):
                spool.append(values[block][wanted])
            positives.append(outcome[wanted] > 0)
        return Judged(users.array(), scores.array(), positives.array(), weights.array())


def merge_parts(parts: Path, labels: tuple[str, ...]) -> Impressions:
    """Return the impressions of all workers, sorted by row and place. Raises UserError if there are none."""
    paths = filled_parts(parts)
    if not paths:
        raise UserError(
            "evaluation: there are no impressions in this split; use more logs, or move split.validation_time and split.test_time"
        )
    return Impressions(MergedParts(paths, schema_of_parts(paths)), labels)
