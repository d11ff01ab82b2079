"""What finished trials left in their folders, read back: metrics, and each user's own value."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.study.record import Record
from cluster.study.trials import Trial
from trainer.errors import UserError


@dataclass(frozen=True)
class Measured:
    """One split of one trial. users: as in the logs, in the order of the dataset; of_users: (users,) the study's metric."""

    metrics: dict[str, float]
    users: list[Any]
    of_users: np.ndarray


@dataclass(frozen=True)
class Finished:
    """A finished trial with its splits by name."""

    trial: Trial
    record: Record
    splits: dict[str, Measured]


def read_trial(trial: Trial, record: Record, splits: Sequence[str], metric: str) -> Finished:
    """Raises UserError naming a file that is missing or damaged."""
    folder = trial.config.run_dir / "evaluation"
    return Finished(trial, record, {split: _read_split(folder / split, metric) for split in splits})


def _read_split(folder: Path, metric: str) -> Measured:
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
        table = pq.read_table(folder / "per_user.parquet", columns=["user", metric])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: cannot be read ({error}); delete the folder of that trial to run it again"
        ) from None
    return Measured(metrics, table.column("user").to_pylist(), table.column(metric).to_numpy())
