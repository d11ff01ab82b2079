"""All scored impressions of a split, merged from the workers' parts. No torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.errors import UserError
from trainer.evaluation.ranking.judged import Judged
from trainer.storage.parquet import read_parquet

MODEL = "model"


@dataclass(frozen=True)
class Impressions:
    """All scored impressions of a split, in the order of the dataset."""

    table: pa.Table
    """A row per impression, with the columns of evaluate.write_scores."""
    labels: tuple[str, ...]
    """The labels of the model."""

    def column(self, name: str) -> np.ndarray:
        """Return a column, (M,)."""
        values: np.ndarray = self.table.column(name).to_numpy()
        return values

    def defined(self, label: str) -> np.ndarray:
        """Return where a label is defined, (M,) bool."""
        known: np.ndarray = ~np.isnan(self.column(f"label.{label}"))
        return known

    def judged(self, label: str, source: str = MODEL, inside: np.ndarray | None = None) -> Judged:
        """Return the impressions on which a label is defined.

        Args:
            label: the label.
            source: MODEL, or the name of a baseline, for its scores.
            inside: (M,) bool, the impressions to choose from; None for all.
        """
        logit = f"logit.{label}" if source == MODEL else f"logit.{source}.{label}"
        clicks, logits = self.column(f"label.{label}"), self.column(logit).astype(np.float64)
        of_all = Judged(self.column("row_id"), logits, clicks > 0, self.column("weight"))
        wanted = self.defined(label) if inside is None else self.defined(label) & inside
        return of_all.take(wanted)


def merge_parts(parts: Path, labels: tuple[str, ...]) -> Impressions:
    """Return the impressions of all workers, sorted by row and place. Raises UserError if there are none."""
    tables = [read_parquet(path) for path in sorted(parts.glob("rank-*.parquet"))]
    merged = pa.concat_tables(tables) if tables else None
    if merged is None or merged.num_rows == 0:
        raise UserError(
            "evaluation: there are no impressions in this split; use more logs, or move split.validation_time and split.test_time"
        )
    return Impressions(merged.sort_by([("row_id", "ascending"), ("place", "ascending")]).combine_chunks(), labels)
