"""Shares of users in the metrics of a ranking model, computed from per_impression.parquet: for parts of impressions and of users.

per_user.parquet has these shares for all impressions of all users. A slice, or fewer users, needs them computed again.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.comparison.evaluations import StoredEvaluation
from trainer.errors import UserError
from trainer.evaluation.ranking.intervals import shares_of_users
from trainer.evaluation.ranking.judged import Judged, areas_of, count_scores, sums_of
from trainer.evaluation.ranking.metrics import metrics_of
from trainer.evaluation.ranking.names import name_of
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
    """The columns of the file, with "user_number": the place of the user among the compared ones."""

    def numbers(self, column: str) -> np.ndarray:
        """Return a column, (M,) float64 with NaN for null."""
        values: np.ndarray = pc.cast(self.table.column(column), pa.float64()).to_numpy()
        return values

    def judged(self, label: str, inside: np.ndarray | None = None) -> Judged:
        """Return the impressions on which a label is defined, with logits. inside: (M,) bool; None for all."""
        labels = self.evaluation.labels
        outcome, chance = (self.numbers(name_of(name, label, labels)) for name in ("label", "probability"))
        chance = np.clip(chance, _SMALLEST, _LARGEST)  # a probability that was rounded to 0 or 1 has no finite logit
        defined = ~np.isnan(outcome) if inside is None else ~np.isnan(outcome) & inside
        users = self.table.column("user_number").to_numpy()
        return Judged(users, np.log(chance) - np.log1p(-chance), outcome > 0, self.numbers("weight")).take(defined)

    def shares(self, label: str, inside: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the numbers of the users with such impressions, and by metric their shares: the metric is the mean of these."""
        judged = self.judged(label, inside)
        users = np.unique(judged.user)
        if not users.size:
            return users, {}
        return users, shares_of_users(judged, metrics_of(sums_of(judged), areas_of(count_scores(judged))), users)


def read_impressions(evaluation: StoredEvaluation) -> Impressions | None:
    """Read the impressions of an evaluation's users; None if the file is missing."""
    path = evaluation.folder / FILE
    if not path.is_file():
        return None
    try:
        table = read_parquet(path)
        number = pc.index_in(table.column("user"), value_set=evaluation.users)
        table = table.append_column("user_number", number).filter(number.is_valid())
        return Impressions(evaluation, table.sort_by([(name, "ascending") for name in _ORDER]).combine_chunks())
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); evaluate the checkpoint again") from None


def same_impressions(first: Impressions, other: Impressions) -> bool:
    """Return whether both have the same impressions in the same order, with the same labels where both are defined."""
    if first.table.num_rows != other.table.num_rows:
        return False
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
