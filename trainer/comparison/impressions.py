"""Shares of users in the metrics of a ranking model, computed from per_impression.parquet: for parts of impressions and of users.

per_user.parquet has these shares for all impressions of all users. A slice, or fewer users, needs them computed again.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.comparison.evaluations import StoredEvaluation
from trainer.comparison.mapped_tables import mapped
from trainer.errors import UserError
from trainer.evaluation.ranking.intervals import shares_of_users
from trainer.evaluation.ranking.judged import Judged, areas_of, sums_of
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.evaluation.ranking.names import name_of
from trainer.evaluation.spooled import Spool, blocks, unique_keys
from trainer.storage.parquet import read_parquet

FILE = "per_impression.parquet"
_ORDER = ("user_number", "time", "item")
_SMALLEST = np.finfo(np.float64).tiny
_LARGEST = 1.0 - np.finfo(np.float64).epsneg


@dataclass(frozen=True)
class Impressions:
    """The impressions of the compared users, by user and then time."""

    evaluation: StoredEvaluation
    """The evaluation that they are from."""
    table: pa.Table
    """The columns of the file, with "user_number": the place of the user among the compared ones. In a temporary file."""

    def numbers(self, column: str) -> np.ndarray:
        """Return a column, (M,) float64 with NaN for null."""
        values: np.ndarray = pc.cast(self.table.column(column), pa.float64()).to_numpy()
        return values

    def some(self, block: slice) -> "Impressions":
        """Return a block of the impressions."""
        return Impressions(self.evaluation, self.table.slice(block.start, block.stop - block.start))

    def judged(self, label: str, inside: np.ndarray | None = None) -> Judged:
        """Return the impressions on which a label is defined, with logits. inside: (M,) bool; None for all."""
        labels = self.evaluation.labels
        columns = ["user_number", "weight", *(name_of(name, label, labels) for name in ("label", "probability"))]
        table = self.table.select(columns)
        users, scores, positive, weights = (Spool(kind) for kind in (np.int32, np.float64, np.bool_, np.float64))
        for block in blocks(table.num_rows):
            some = Impressions(self.evaluation, table).some(block)
            number, weight, outcome, chance = (some.numbers(name) for name in columns)
            chance = np.clip(
                chance, _SMALLEST, _LARGEST
            )  # a probability that was rounded to 0 or 1 has no finite logit
            defined = ~np.isnan(outcome) if inside is None else ~np.isnan(outcome) & inside[block]
            users.append(number[defined])
            scores.append((np.log(chance) - np.log1p(-chance))[defined])
            positive.append((outcome > 0)[defined])
            weights.append(weight[defined])
        return Judged(users.array(), scores.array(), positive.array(), weights.array())

    def shares(self, label: str, inside: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the numbers of the users with such impressions, and by metric their shares: the metric is the mean of these."""
        judged = self.judged(label, inside)
        users = unique_keys(judged.user)
        if not users.size:
            return users, {}
        return users, shares_of_users(judged, metrics_of(sums_of(judged), areas_of(judged.counts)), users)


def read_impressions(evaluation: StoredEvaluation) -> Impressions | None:
    """Read the impressions of an evaluation's users; None if the file is missing."""
    path = evaluation.folder / FILE
    if not path.is_file():
        return None
    try:
        table = read_parquet(path)
        number = pc.index_in(table.column("user"), value_set=evaluation.users)
        table = table.append_column("user_number", number).filter(number.is_valid())
        return Impressions(evaluation, mapped(table.sort_by([(name, "ascending") for name in _ORDER])))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); evaluate the checkpoint again") from None


def same_impressions(first: Impressions, other: Impressions) -> bool:
    """Return whether both have the same impressions in the same order, with the same labels where both are defined."""
    if first.table.num_rows != other.table.num_rows:
        return False
    return all(_same_block(first.some(block), other.some(block)) for block in blocks(first.table.num_rows))


def _same_block(first: Impressions, other: Impressions) -> bool:
    labels = [label for label in first.evaluation.labels if label in other.evaluation.labels]
    if not np.array_equal(first.numbers("time"), other.numbers("time")):
        return False
    items, other_items = (pc.cast(one.table.column("item"), pa.string()) for one in (first, other))
    if pc.any(pc.not_equal(items, other_items)).as_py():  # an unknown item, which is null, may be any
        return False
    for label in labels:
        outcome, others = (one.numbers(name_of("label", label, one.evaluation.labels)) for one in (first, other))
        if not np.array_equal(outcome, others, equal_nan=True):
            return False
    return True
