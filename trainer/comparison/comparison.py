"""Comparison of trained models on the same users: from stored evaluations to paired differences with verdicts.

It reads what `shoal evaluate` wrote: metrics.json, per_user.parquet, and per_impression.parquet of ranking models. It loads neither
torch nor ray, and trains and scores nothing.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from trainer.comparison import slices
from trainer.comparison.bootstrap import RESAMPLES, SEED
from trainer.comparison.differences import Difference, Measured, differences_of
from trainer.comparison.evaluations import Input, StoredEvaluation, read_evaluations
from trainer.comparison.impressions import Impressions, read_impressions, same_impressions
from trainer.comparison.protocols import refuse_other_protocols, refuse_other_targets, with_common_users
from trainer.comparison.sides import Side, sides_of
from trainer.comparison.slices import SliceDifference
from trainer.errors import UserError
from trainer.evaluation.confidence import mean_interval
from trainer.evaluation.spooled import kept
from trainer.tasks.metrics import headline_names, interval_of, metric_of

_OWN = {"gauc": "user_auc", "logloss": "user_logloss"}  # the values of a user alone, of metrics of ranking models


@dataclass(frozen=True)
class Pair:
    """The differences of one side to another one."""

    reference: Side
    """The side that the other one is compared with."""
    other: Side
    """The compared side."""
    differences: tuple[Difference, ...]
    """One per metric."""
    slices: tuple[SliceDifference, ...]
    """One per slice and headline metric."""


@dataclass(frozen=True)
class Unpaired:
    """A metric that has no difference with an interval."""

    metric: str
    """The name of the metric's value."""
    reason: str
    """Why, in words."""
    values: tuple[float | None, ...]
    """Its mean over the seeds of each side, None where it has none."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of two or more models."""

    task: str
    """"next_item" or "ranking"."""
    split: str
    """The evaluated split."""
    protocol: dict[str, Any]
    """The protocol of the first evaluation; that of the others is the same."""
    num_users: int
    """Users on which all are compared."""
    num_left_out: int
    """Users that not all evaluations have, which were left out."""
    sides: tuple[Side, ...]
    """What is compared; the first is the reference."""
    pairs: tuple[Pair, ...]
    """Every pair of sides; those with the first side come first."""
    unpaired: tuple[Unpaired, ...]
    """Metrics without a paired difference."""
    repeated: dict[str, str]
    """Metrics that equal another one for every user, such as recall@10 with one target, with that one."""
    has_slices: bool
    """False if the impressions of a ranking model are missing, without which there are no slices."""
    num_resamples: int
    """Draws of the bootstrap."""
    seed: int
    """Seed of the bootstrap."""

    @property
    def num_tests(self) -> int:
        """The number of tests that were corrected together: metrics of all pairs."""
        return sum(len(pair.differences) for pair in self.pairs)

    @property
    def headlines(self) -> list[str]:
        """The metrics that summaries show."""
        names = [one.metric for one in self.pairs[0].differences]
        return headline_names(names) or names[:1]


def compare(
    inputs: Sequence[Input],
    split: str = "test",
    checkpoint: str | None = None,
    *,
    metrics: Sequence[str] | None = None,
    common_users: bool = False,
    num_resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare evaluations of the same users by the same protocol.

    Args:
        inputs: folders of runs or evaluations, the reference first; each may have a name (read_evaluations).
        split: the split to read from run folders.
        checkpoint: the checkpoint to read from run folders; None for the best.
        metrics: names of the metrics to compare; None for all. Fewer metrics need less correction.
        common_users: whether users that not all evaluations have are left out. Otherwise they are refused.
        num_resamples: draws of the bootstrap.
        seed: seed of the bootstrap.

    Raises:
        UserError: the evaluations cannot be compared, or cannot be read; the message says why.
    """
    evaluations = read_evaluations(inputs, split, checkpoint)
    refuse_other_protocols(evaluations)
    evaluations, num_left_out = with_common_users(evaluations, common_users)
    refuse_other_targets(evaluations)
    sides = sides_of(evaluations)
    impressions = _impressions(evaluations)
    numbers = _Numbers(evaluations, impressions if num_left_out else None)
    names, repeated, reasons = _metrics(evaluations, numbers, metrics)
    pairs = list(itertools.combinations(sides, 2))
    differences = differences_of(_MeasuredOnDemand(numbers, pairs, names), num_resamples, seed)
    by_pair = [differences[start : start + len(names)] for start in range(0, len(differences), len(names))]
    headlines = headline_names(names) or names[:1]
    of_slices = _slices(pairs, headlines, evaluations[0], impressions)
    return Comparison(
        task=evaluations[0].values["task"],
        split=evaluations[0].values["split"],
        protocol=evaluations[0].values["protocol"],
        num_users=evaluations[0].table.num_rows,
        num_left_out=num_left_out,
        sides=tuple(sides),
        pairs=tuple(
            Pair(*pair, tuple(of_pair), tuple(parts))
            for pair, of_pair, parts in zip(pairs, by_pair, of_slices, strict=True)
        ),
        unpaired=tuple(
            Unpaired(name, reason, tuple(_value(s, name) for s in sides)) for name, reason in reasons.items()
        ),
        repeated=repeated,
        has_slices=any(of_slices),
        num_resamples=num_resamples,
        seed=seed,
    )


class _Numbers:
    """Numbers per user of each evaluation by metric, as far as they are defined: views of columns in temporary files."""

    def __init__(self, evaluations: Sequence[StoredEvaluation], recomputed: dict[str, Impressions] | None) -> None:
        """Collect the columns. recomputed: the impressions of fewer users than were evaluated, for ranking models."""
        self._columns: dict[tuple[str, str], np.ndarray] = {}
        for evaluation in evaluations:
            if recomputed is not None and evaluation.labels:
                self._recompute(evaluation, recomputed)
                continue
            for metric in evaluation.metrics:
                values = evaluation.column(metric)
                if values is not None and np.isfinite(values).all():
                    self._columns[evaluation.name, metric] = values

    def _recompute(self, evaluation: StoredEvaluation, impressions: dict[str, Impressions]) -> None:
        if evaluation.name not in impressions:
            raise UserError(
                f"compare: {evaluation.folder}: has no per_impression.parquet, which the metrics of only the common users need; "
                "evaluate the checkpoint again"
            )
        for label in evaluation.labels:
            users, shares = impressions[evaluation.name].shares(label)
            # A user without an impression of this label has the mean as share: it adds nothing to differences.
            for name, values in shares.items():
                of_all = np.full(evaluation.table.num_rows, values.mean())
                of_all[users] = values.mean() + (values - values.mean()) * (of_all.size / users.size)
                self._columns[evaluation.name, f"{name}/{label}"] = kept(of_all)

    def of(self, name: str, metric: str) -> np.ndarray | None:
        """Return the numbers of an evaluation, (users,); None if they are not stored or the metric is not defined."""
        return self._columns.get((name, metric))

    def measured(self, metric: str, reference: Side, other: Side) -> Measured:
        """Return the numbers of two sides."""
        ours, others = (
            _rows([self._columns[one.name, metric] for one in side.evaluations]) for side in (reference, other)
        )
        return Measured(metric, ours, others, self._own(metric, reference, other))

    def _own(self, metric: str, reference: Side, other: Side) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the users' own values; None where the metric is not defined for a user alone."""
        if not reference.evaluations[0].labels:
            if interval_of(metric) is not mean_interval:  # users' shares, which are no values of a user alone
                return None
            columns = [[self._columns[one.name, metric] for one in side.evaluations] for side in (reference, other)]
        else:
            name, _, label = metric.partition("/")
            own = _OWN.get(name)
            columns = [
                [values for one in side.evaluations if own and (values := one.column(f"{own}/{label}")) is not None]
                for side in (reference, other)
            ]
            if not all(columns):
                return None
        ours, others = (of_side[0] if len(of_side) == 1 else np.mean(of_side, axis=0) for of_side in columns)
        return ours, others


class _MeasuredOnDemand(Sequence[Measured]):
    """The numbers of each pair of sides and each metric. They are read when they are needed: of all together there are many."""

    def __init__(self, numbers: _Numbers, pairs: Sequence[tuple[Side, Side]], names: Sequence[str]) -> None:
        self._numbers = numbers
        self._asked = [(name, *pair) for pair in pairs for name in names]

    def __len__(self) -> int:
        return len(self._asked)

    @overload
    def __getitem__(self, place: int) -> Measured: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Measured]: ...

    def __getitem__(self, place: int | slice) -> Measured | Sequence[Measured]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        return self._numbers.measured(*self._asked[place])


def _rows(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return columns as rows of one array; of a single one a view, because there may be many users and metrics."""
    return columns[0][None] if len(columns) == 1 else np.stack(columns)


def _metrics(
    evaluations: Sequence[StoredEvaluation], numbers: _Numbers, wanted: Sequence[str] | None
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Return the metrics to compare, those that repeat another one with that one, and reasons why others are not compared."""
    names: list[str] = []
    repeated: dict[str, str] = {}
    reasons: dict[str, str] = {}
    known = list(dict.fromkeys(metric for evaluation in evaluations for metric in evaluation.metrics))
    if wanted is not None:
        full = [evaluations[0].full_name(name) if "/" not in name else name for name in wanted]
        unknown = [name for name, of_label in zip(wanted, full, strict=True) if of_label not in known]
        if unknown:
            raise UserError(f"compare: --metric {', '.join(unknown)}: was not evaluated; there are {', '.join(known)}")
        known = list(dict.fromkeys(full))
    for metric in known:
        lacking = [evaluation.name for evaluation in evaluations if numbers.of(evaluation.name, metric) is None]
        twin = next((name for name in names if not lacking and _equal(evaluations, numbers, name, metric)), None)
        if not _is_known(metric):
            reasons[metric] = "this version of shoal does not know the metric"
        elif lacking:
            reasons[metric] = _why_unpaired(metric, lacking, evaluations)
        elif twin is not None:
            repeated[metric] = twin
        else:
            names.append(metric)
    if not names:
        raise UserError(
            "compare: no metric has values per user in all evaluations: "
            + "; ".join(f"{metric}: {reason}" for metric, reason in reasons.items())
        )
    return names, repeated, reasons


def _is_known(metric: str) -> bool:
    """Return whether a metric is one of this version. A later one may have written the evaluation."""
    try:
        metric_of(metric)
    except KeyError:
        return False
    return True


def _equal(evaluations: Sequence[StoredEvaluation], numbers: _Numbers, first: str, other: str) -> bool:
    """Return whether two metrics have the same value for every user of every evaluation."""
    pairs = ((numbers.of(one.name, first), numbers.of(one.name, other)) for one in evaluations)
    return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)


def _why_unpaired(metric: str, lacking: Sequence[str], evaluations: Sequence[StoredEvaluation]) -> str:
    """Return why a metric has no paired difference."""
    if not any(evaluation.column(metric) is not None for evaluation in evaluations):
        return "one number for all users together, so users cannot be paired"
    without = [one.name for one in evaluations if metric not in one.metrics]
    if without:
        return f"not evaluated in {', '.join(without)}"
    reason = metric_of(metric).undefined_when or "a value is missing"
    return f"not defined in {', '.join(lacking)} ({reason})"


def _impressions(evaluations: Sequence[StoredEvaluation]) -> dict[str, Impressions]:
    """Return the impressions by name of the evaluation; none for next_item, or if a file is missing.

    Raises UserError if the impressions differ.
    """
    if evaluations[0].values["task"] != "ranking":
        return {}
    read = {evaluation.name: read_impressions(evaluation) for evaluation in evaluations}
    known = {name: impressions for name, impressions in read.items() if impressions is not None}
    first = next(iter(known.values()), None)
    for name, other in known.items():
        if first is not None and not same_impressions(first, other):
            raise UserError(
                f"compare: the impressions of {first.evaluation.name} and {name} differ in times, items or labels: these are other "
                "held-out impressions; evaluate both runs on the same ones"
            )
    return known


def _slices(
    pairs: Sequence[tuple[Side, Side]],
    metrics: Sequence[str],
    first: StoredEvaluation,
    impressions: dict[str, Impressions],
) -> list[list[SliceDifference]]:
    """Return the differences on slices by pair, as far as the files have them."""
    if first.values["task"] != "ranking":
        results = [name for name in first.table.column_names if name in first.metrics]
        return slices.slice_users(pairs, metrics, slices.parts_of_users(first.table.drop_columns(results)))
    names = {one.name for pair in pairs for side in pair for one in side.evaluations}
    if names - impressions.keys():
        return [[] for _ in pairs]
    parts = slices.parts_of_impressions(impressions[first.name].table)
    return slices.slice_impressions(pairs, metrics, parts, impressions)


def _value(side: Side, metric: str) -> float | None:
    """Return the mean of a metric over the seeds of a side, None where a seed has no value."""
    values = [evaluation.metrics.get(metric) for evaluation in side.evaluations]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
