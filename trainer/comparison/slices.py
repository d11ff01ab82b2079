"""Slices of a comparison: parts of the users, or of the impressions of a ranking model, by every column that is stored.

The intervals of slices are score intervals, because slices may be small, and their tests are corrected together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.comparison.differences import Difference, Measured, corrected, untested_difference
from trainer.comparison.impressions import Impressions
from trainer.comparison.sides import Side
from trainer.evaluation.ranking.names import BASELINES
from trainer.evaluation.slices import masks
from trainer.tasks.metrics import metric_of

POPULARITY = "popularity_place"
WORDS = {
    "history_length": "events in the history",
    POPULARITY: "place of the target by popularity",
    "item_impressions": "training impressions of the item",
    "user_impressions": "training impressions of the user",
}
MAX_VALUES = 12  # values of a column of text; more are no slices
_FEW_VALUES = 6  # so many different numbers are slices of their own, more are put into quarters
_MIN_USERS = 2
_NOT_SLICED = ("user", "item", "time", "weight", "user_number", "impressions", *BASELINES)
_OF_LABELS = ("label", "probability", "positives", "user_auc", "user_logloss", *BASELINES)


@dataclass(frozen=True)
class SliceDifference:
    """The difference of two sides in one metric on one slice."""

    column: str
    """The column of the slice."""
    value: str
    """Its value or range of values."""
    num_users: int
    """Users of the slice."""
    of: Difference
    """The difference."""

    @property
    def title(self) -> str:
        """The column in words, and the value."""
        return f"{WORDS.get(self.column, self.column)}: {self.value}"


@dataclass(frozen=True)
class Part:
    """A slice."""

    column: str
    """The column of the slice."""
    value: str
    """Its value or range of values."""
    inside: np.ndarray
    """(rows,) bool."""


def parts_of_users(table: pa.Table) -> list[Part]:
    """Return the slices of a per_user.parquet of a next_item model."""
    columns = {name: table.column(name) for name in table.column_names if not _is_measured(name)}
    if "popularity_ranks" in table.column_names:
        places = pc.list_element(table.column("popularity_ranks"), 0)
        columns[POPULARITY] = pc.if_else(pc.equal(places, 0), pa.scalar(None, pa.int64()), places)
    return [part for name, column in columns.items() for part in _parts(name, column)]


def parts_of_impressions(table: pa.Table) -> list[Part]:
    """Return the slices of a per_impression.parquet."""
    return [part for name in table.column_names if not _is_measured(name) for part in _parts(name, table.column(name))]


def slice_users(
    pairs: Sequence[tuple[Side, Side]], metrics: Sequence[str], parts: Sequence[Part]
) -> list[list[SliceDifference]]:
    """Return the differences of next_item models by pair of sides; all have the same users in the same order."""
    results = []
    for number, (reference, other) in enumerate(pairs):
        for metric in metrics:
            numbers = [np.stack([_of(one, metric) for one in side.evaluations]) for side in (reference, other)]
            for part in parts:
                ours, others = (values[:, part.inside] for values in numbers)
                if ours.shape[1] >= _MIN_USERS:
                    results.append(_Result.of(number, part, Measured(metric, ours, others, None)))
    return _by_pair(len(pairs), results)


def slice_impressions(
    pairs: Sequence[tuple[Side, Side]],
    metrics: Sequence[str],
    parts: Sequence[Part],
    impressions: dict[str, Impressions],
) -> list[list[SliceDifference]]:
    """Return the differences of ranking models by pair of sides.

    Args:
        pairs: reference and other.
        metrics: full names of metrics, as in "auc/click".
        parts: the slices of the impressions, which all evaluations share.
        impressions: by name of the evaluation.
    """
    labels = list(dict.fromkeys(metric.partition("/")[2] for metric in metrics))
    sides = list({side.name: side for pair in pairs for side in pair}.values())
    results: dict[tuple[int, int, int], _Result] = {}
    for place, part in enumerate(parts):
        for label in labels:
            shares = {side.name: _shares_of(side, label, part, impressions) for side in sides}
            for number, (reference, other) in enumerate(pairs):
                for order, metric in enumerate(metrics):
                    name, _, of_label = metric.partition("/")
                    ours, others = (shares[side.name].get(name) for side in (reference, other))
                    if of_label != label or ours is None or others is None or ours.shape[1] < _MIN_USERS:
                        continue
                    if np.isfinite(ours).all() and np.isfinite(others).all():
                        results[number, order, place] = _Result.of(number, part, Measured(metric, ours, others, None))
    return _by_pair(len(pairs), [results[key] for key in sorted(results)])


def _shares_of(side: Side, label: str, part: Part, impressions: dict[str, Impressions]) -> dict[str, np.ndarray]:
    """Return the shares of users in the metrics of a slice, (seeds, users) each, for metrics that all seeds have."""
    of_seeds = [impressions[one.name].shares(label, part.inside)[1] for one in side.evaluations]
    names = [name for name in of_seeds[0] if all(name in of_seed for of_seed in of_seeds)]
    return {name: np.stack([of_seed[name] for of_seed in of_seeds]) for name in names}


@dataclass(frozen=True)
class _Result:
    """The result of a slice. It does not hold the numbers of users, which would be many for all slices together."""

    pair: int
    """The number of the pair of sides."""
    part: Part
    """The slice."""
    num_users: int
    """Users of the slice."""
    difference: Callable[[int], Difference]
    """The difference from the number of tests."""

    @staticmethod
    def of(pair: int, part: Part, measured: Measured) -> "_Result":
        """Test the numbers of both sides."""
        return _Result(pair, part, measured.other.shape[1], untested_difference(measured))


def _by_pair(num_pairs: int, results: Sequence[_Result]) -> list[list[SliceDifference]]:
    """Return the differences of all slices by pair, corrected together."""
    by_pair: list[list[SliceDifference]] = [[] for _ in range(num_pairs)]
    differences = corrected([one.difference(len(results)) for one in results])
    for one, difference in zip(results, differences, strict=True):
        by_pair[one.pair].append(SliceDifference(one.part.column, one.part.value, one.num_users, difference))
    return by_pair


def _of(evaluation: Any, metric: str) -> np.ndarray:
    values: np.ndarray | None = evaluation.column(metric)
    assert values is not None
    return values


def _is_measured(name: str) -> bool:
    """Return whether a column holds results or identities, by which nothing is sliced."""
    if name in _NOT_SLICED or name.partition("/")[0] in _OF_LABELS:
        return True
    for metric in (name, name.rpartition("/")[2]):  # of the model, or of a baseline
        with suppress(KeyError):
            metric_of(metric)
            return True
    return False


def _parts(name: str, column: pa.ChunkedArray) -> Iterator[Part]:
    """Yield the slices by a column: each of few values, or quarters of many numbers. Rows without a value are a slice."""
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (is_number or pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_large_string(kind)):
        return
    valid = column.is_valid().to_numpy()
    values = column.drop_null().to_numpy(zero_copy_only=False)
    distinct = np.unique(values)
    if is_number and distinct.size > _FEW_VALUES:
        cuts = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf"))
        group = np.searchsorted(cuts, values, side="left")
        names = {int(k): _range_text(values[group == k]) for k in np.unique(group)}
    elif distinct.size <= MAX_VALUES:
        group = np.searchsorted(distinct, values)
        names = {k: str(value) for k, value in enumerate(distinct)}
    else:
        return
    if len(names) + int(not valid.all()) < 2:
        return
    of_row = np.full(len(column), -1, np.int8)
    of_row[valid] = group
    for text, inside in zip(names.values(), masks(of_row, list(names)), strict=True):
        yield Part(name, text, inside)
    if not valid.all():
        yield Part(name, "none", ~valid)


def _range_text(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    texts = [f"{value:,}" if values.dtype.kind in "iu" else f"{value:.4g}" for value in (low, high)]
    return texts[0] if low == high else f"{texts[0]} to {texts[1]}"
