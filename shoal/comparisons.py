"""The function compare: models on the same users, with the results as values. Imports neither torch nor ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.storage.objects.paths import local_path

if TYPE_CHECKING:
    import pyarrow as pa

    from trainer.comparison.comparison import Comparison as Compared
    from trainer.comparison.evaluations import Input


@dataclass(frozen=True)
class Difference:
    """The difference of a model to its reference in one metric."""

    metric: str
    reference: float  # the metric of the reference
    value: float  # the metric of the other model
    difference: float  # value minus reference
    interval: tuple[float, float] | None  # at 95 %, over users; None with a single user
    relative: float | None  # relative to the reference; None where that is 0
    p: float  # corrected for the number of comparisons
    outcome: str  # "better", "worse", "none" (no difference found), "unclear" (over seeds), "differs" (no direction is better)
    verdict: str  # the same in a sentence


@dataclass(frozen=True)
class Pair:
    """Two models, or groups of seeds, that are compared."""

    reference: str  # name
    other: str  # name
    verdict: str  # over all metrics, in words
    differences: Mapping[str, Difference]  # by metric


@dataclass(frozen=True)
class Comparison:
    """The comparison of two or more models on the same users."""

    num_users: int
    pairs: tuple[Pair, ...]  # every pair; those with the first model come first
    notes: tuple[str, ...]  # what limits the verdicts
    page: Path | None  # compare.html; None if nothing was written
    values: Mapping[str, Any]  # all that compare.json holds: slices, effect sizes, settings and costs too

    @property
    def verdict(self) -> str:
        """The verdicts of all pairs."""
        return "\n".join(pair.verdict for pair in self.pairs)

    def table(self) -> "pa.Table":
        """Return a table with a row per pair and metric."""
        import pyarrow as pa

        rows = [
            {"reference_model": pair.reference, "other_model": pair.other, **vars(difference)}
            for pair in self.pairs
            for difference in pair.differences.values()
        ]
        return pa.Table.from_pylist(rows)


def compare(
    runs: Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]],
    split: Literal["validation", "test"] = "test",
    checkpoint: str | None = None,
    *,
    metrics: Sequence[str] | None = None,
    common_users: bool = False,
    out: str | Path | None = None,
) -> Comparison:
    """Compare trained models on the same users, from what `evaluate` wrote.

    Args:
        runs: folders of runs or of evaluations, the reference first. A dictionary gives them names; a list of folders is one model
            under several seeds: {"SASRec": ["runs/s1", "runs/s2"], "HSTU": ["runs/h1", "runs/h2"]}.
        split: the split to compare on; it must have been evaluated.
        checkpoint: name of a checkpoint that was evaluated by name; by default the best.
        metrics: names of metrics; by default all.
        common_users: whether users that not all evaluations have are left out instead of refused.
        out: folder for compare.html and compare.json; by default nothing is written.

    Raises:
        UserError: the evaluations cannot be compared or read; the message says why.
    """
    from trainer.comparison import outputs
    from trainer.comparison.comparison import compare as compared

    comparison = compared(_inputs(runs), split, checkpoint, metrics=metrics, common_users=common_users)
    page = None if out is None else outputs.write(comparison, local_path(out, "out"))
    return _comparison_of(comparison, outputs.values_of(comparison), page)


def _inputs(runs: Sequence[str | Path] | Mapping[str, str | Path | Sequence[str | Path]]) -> "list[Input]":
    """Return folders with their names."""
    if not isinstance(runs, Mapping):
        return [*runs]
    return [
        (name, folder)
        for name, folders in runs.items()
        for folder in ([folders] if isinstance(folders, str | Path) else folders)
    ]


def _comparison_of(comparison: "Compared", values: dict[str, Any], page: Path | None) -> Comparison:
    pairs = tuple(
        Pair(
            of_pair["reference"],
            of_pair["other"],
            of_pair["verdict"],
            {
                one["metric"]: Difference(
                    **{name: one[name] for name in Difference.__dataclass_fields__ if name != "p"}, p=one["p_corrected"]
                )
                for one in of_pair["metrics"]
            },
        )
        for of_pair in values["pairs"]
    )
    return Comparison(comparison.num_users, pairs, tuple(values["notes"]), page, values)
