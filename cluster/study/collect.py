"""Results of finished trials, read from their folders: metrics, and the value of each user."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.study.record import Record
from cluster.study.statistics import Estimate, estimate
from cluster.study.trials import Trial, metric_in
from trainer.errors import UserError
from trainer.storage.parquet import read_parquet
from trainer.tasks.metrics import interval_of, range_of


@dataclass(frozen=True)
class Measured:
    """One split of one trial."""

    metrics: dict[
        str, float | None
    ]  # the study's metric under its name in the study, too; None where one is not defined
    users: list[Any]  # as in the logs, in the order of the dataset
    of_users: np.ndarray  # (users,) the numbers of which the study's metric is the mean

    def value(self, metric: str) -> float:
        """Return a metric, NaN where it is not defined."""
        value = self.metrics[metric]
        return math.nan if value is None else value


@dataclass(frozen=True)
class Finished:
    """A finished trial with its splits by name."""

    trial: Trial
    record: Record
    splits: dict[str, Measured]


def read_trial(trial: Trial, record: Record, splits: Sequence[str], metric: str) -> Finished:
    """Return the metrics of a finished trial. Raises UserError that names a file that is missing or damaged."""
    folder, stored = trial.config.run_dir / "evaluation", metric_in(trial.config, metric)
    return Finished(trial, record, {split: _read_split(folder / split, metric, stored) for split in splits})


def estimate_of(
    points: Sequence[Sequence[Finished]], split: str, metric: str, minus: Sequence[Sequence[Finished]] | None = None
) -> Estimate:
    """Estimate the mean over points, each under the same seeds; less that of `minus`, seed by seed and user by user.

    Without an interval over users where trials have different ones.
    """
    interval = interval_of(metric)
    users, of_seeds, of_users = _means(points, split, metric)
    if minus is None:
        return estimate(of_seeds.tolist(), of_users, range_of(metric), interval)
    their_users, less_seeds, less_users = _means(minus, split, metric)
    comparable = of_users is not None and less_users is not None and users == their_users
    by_user = of_users - less_users if comparable else None  # type: ignore[operator]
    return estimate((of_seeds - less_seeds).tolist(), by_user, range_of(metric).of_differences, interval)


def _means(
    points: Sequence[Sequence[Finished]], split: str, metric: str
) -> tuple[list[Any], np.ndarray, np.ndarray | None]:
    """Return the users of the first trial and the means over points, (seeds,) and (seeds, users).

    The last is None unless all trials have these users.
    """
    measured = [[trial.splits[split] for trial in of_seeds] for of_seeds in points]
    of_seeds = np.array([[m.value(metric) for m in of_point] for of_point in measured]).mean(axis=0)
    users = measured[0][0].users
    if any(m.users != users for of_point in measured for m in of_point):
        return users, of_seeds, None
    return users, of_seeds, np.array([[m.of_users for m in of_point] for of_point in measured]).mean(axis=0)


def _read_split(folder: Path, metric: str, stored: str) -> Measured:
    """Read a split. stored: what its files call the study's metric."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
        metrics = {**metrics, metric: metrics[stored]}
        table = read_parquet(folder / "per_user.parquet", columns=["user", stored])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: cannot be read ({error}); delete the folder of that trial to run it again"
        ) from None
    return Measured(metrics, table.column("user").to_pylist(), table.column(stored).to_numpy())
