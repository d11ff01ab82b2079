"""Results of commands, as values. Imports neither torch nor ray."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Outcome
from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.storage.parquet import read_parquet

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Metric:
    """A metric with its confidence interval."""

    value: float | None  # None where it is not defined, such as the auc of positives alone
    interval: tuple[float, float] | None  # at 95 %, with users as the sampling unit; None for metrics without one


@dataclass(frozen=True)
class Dataset:
    """A prepared sequence dataset."""

    folder: Path
    card: Path  # the data card, a page
    digest: str  # of its content
    num_users: int
    num_items: int
    num_events: int  # rows of the logs that were kept
    rejected: Mapping[str, int]  # rows in quarantine, by reason


@dataclass(frozen=True)
class Training:
    """End of a training: its reason, its step and its best checkpoint."""

    reason: str  # "finished", "early" (no more improvement), or "kept" (run.new_logs = "evaluate")
    step: int
    best_step: int | None  # None without early stopping
    best_value: float | None  # of the metric of early stopping
    checkpoint: Path  # what `evaluate` takes by default: the best, or else the newest


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a checkpoint on one split."""

    folder: Path
    task: str  # "next_item" or "ranking"
    split: str  # "validation" or "test"
    checkpoint: str  # name
    num_users: int
    num_targets: int
    metrics: Mapping[str, Metric]
    baselines: Mapping[str, Mapping[str, Metric]]  # {"popularity": {"ndcg@10": ...}}
    values: Mapping[str, Any]  # all that metrics.json holds: protocol and slices too

    @property
    def report(self) -> Path:
        """The report, a page."""
        return self.folder / "report.html"

    @property
    def metrics_file(self) -> Path:
        """The content of `values` as JSON."""
        return self.folder / "metrics.json"

    def per_user(self) -> "pa.Table":
        """Read the metrics of each user, and for next_item also the places of the targets and the top items."""

        return read_parquet(self.folder / "per_user.parquet")


@dataclass(frozen=True)
class Recommendations:
    """Recommendations in a folder of Parquet files."""

    folder: Path
    checkpoint: str  # name
    num_users: int  # with item_to_item, the items with similar ones
    num_rows: int
    values: Mapping[str, Any]  # all that _recommendations.json holds: options, counts, duration

    def table(self) -> "pa.Table":
        """Read all rows: user_id, item_id, score, rank; with item_to_item item_id and similar_item_id."""

        return read_parquet(self.folder)


@dataclass(frozen=True)
class RunResult:
    """Everything that a whole run leaves."""

    run_dir: Path
    dataset: Dataset
    training: Training
    evaluation: Evaluation  # on the test split, or on the validation split if there is no test split


def dataset_of(folder: Path, manifest: Manifest) -> Dataset:
    """Describe a dataset by its manifest."""
    from trainer.data.dataset.card import PAGE  # loads matplotlib

    counts = manifest.counts
    return Dataset(
        folder,
        folder / PAGE,
        manifest.digest,
        counts.num_users,
        counts.num_items,
        counts.rows_kept,
        dict(counts.rejected),
    )


def training_of(run_dir: Path, outcome: Outcome) -> Training:
    """Describe a training by its outcome."""
    checkpoint = run_dir / "checkpoints" / checkpoint_folder.name_of(outcome.best_step or outcome.step)
    return Training(outcome.reason, outcome.step, outcome.best_step, outcome.best_value, checkpoint)


def evaluation_of(folder: Path, values: Mapping[str, Any]) -> Evaluation:
    """Describe an evaluation by the content of its metrics.json."""
    return Evaluation(
        folder=folder,
        task=values["task"],
        split=values["split"],
        checkpoint=values["checkpoint"],
        num_users=values["num_users"],
        num_targets=values["num_targets"],
        metrics=_metrics(values["metrics"], values["ci95"]),
        baselines={
            name: _metrics(metrics, values["baselines_ci95"].get(name, {}))
            for name, metrics in values["baselines"].items()
        },
        values=values,
    )


def recommendations_of(folder: Path, values: Mapping[str, Any]) -> Recommendations:
    """Describe recommendations by the content of their _recommendations.json."""
    return Recommendations(folder, values["checkpoint"], values["num_users"], values["num_rows"], values)


def read_evaluation(folder: Path) -> Evaluation:
    """Read the evaluation in a folder. Raises UserError if there is none that is whole."""
    try:
        values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return evaluation_of(folder, values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: metrics.json cannot be read ({error!r}); evaluate the checkpoint again") from None


def _metrics(values: Mapping[str, float | None], intervals: Mapping[str, list[float]]) -> dict[str, Metric]:
    return {name: Metric(value, _interval(intervals.get(name))) for name, value in values.items()}


def _interval(bounds: list[float] | None) -> tuple[float, float] | None:
    return (bounds[0], bounds[1]) if bounds else None
