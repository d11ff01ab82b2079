"""Trial record: trial.json in the run folder of a trial. No torch, no ray."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cluster.study.trials import Trial, what_it_is
from trainer.errors import UserError
from trainer.storage.files import digest_of, hash_file, write_json_atomically
from trainer.tasks.outputs import FIGURES_VERSION

FILE = "trial.json"


@dataclass(frozen=True)
class Record:
    """Outcome of a trial, over all its attempts."""

    status: Literal["running", "done", "failed"]  # done once everything was evaluated
    digest: str  # of settings and dataset, for which that holds
    attempts: int = 0  # times that it was started
    # Of the training loop, validation and checkpoints included, over all attempts in which it came to its end.
    train_seconds: float = 0.0
    events_per_second: float | None = None  # input events that all workers trained, of the last attempt
    peak_bytes: int | None = None  # the largest memory of a worker
    steps: int = 0
    best_step: int | None = None
    reason: str = ""
    results: dict[str, str] = field(default_factory=dict)  # hashes of the files with its figures
    targets_per_second: float | None = None  # as events_per_second; of a ranker, impressions


def digest_for(trial: Trial, dataset_digest: str, splits: list[str]) -> str:
    """Return the digest of everything that decides a trial's results."""
    settings = what_it_is(trial.config)
    return digest_of({"settings": settings, "dataset": dataset_digest, "splits": splits, "version": FIGURES_VERSION})


def results_of(run_dir: Path, splits: Iterable[str]) -> dict[str, str]:
    """Return the hashes of a trial's figures by path within its run folder. Raises OSError if one is missing."""
    names = [f"evaluation/{split}/{name}" for split in splits for name in ("metrics.json", "per_user.parquet")]
    return {name: hash_file(run_dir / name) for name in names}


def is_current(record: Record, run_dir: Path, digest: str, splits: Sequence[str]) -> bool:
    """Return whether a trial is done for this digest, and its folder still holds what it left, not a later evaluation."""
    if record.status != "done" or record.digest != digest:
        return False
    try:
        return record.results == results_of(run_dir, splits)
    except OSError:
        return False


def read_record(run_dir: Path) -> Record | None:
    path = run_dir / FILE
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Record(**values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is no record of a trial ({error}); delete it to run the trial again") from None


def write_record(run_dir: Path, record: Record) -> None:
    write_json_atomically(run_dir / FILE, asdict(record))


def begun(before: Record | None, digest: str) -> Record:
    """Return the record of a further attempt. An attempt with other settings does not count."""
    if before is None or before.digest != digest:
        return Record("running", digest, attempts=1)
    return replace(before, status="running", attempts=before.attempts + 1, reason="", results={})
