"""Record of concurrent evaluations: validations.json in the run folder. Imports no torch.

With concurrent evaluation a training only marks the checkpoints that are due. Other workers validate them, and the driver writes
this record: each marked checkpoint with its metrics, or as skipped. Only the driver writes it. The training reads it, to keep
checkpoints that are not in it, and to copy the metrics to metrics.jsonl.

The invariant: a checkpoint enters the record after best.json names it, if it is the best. So retention, which reads the record
first, never deletes a checkpoint that best.json is about to name.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import CheckpointManifest
from trainer.config.train import EarlyStoppingConfig
from trainer.errors import CheckpointError, UserError
from trainer.loop.early_stopping import best_after
from trainer.loop.state import State
from trainer.storage.files import digest_of, write_json_atomically

FILE = "validations.json"
_DUE = "validation_due"  # of the metrics of a manifest


@dataclass(frozen=True)
class Validation:
    """Outcome of a checkpoint that was due for validation."""

    step: int
    """The steps trained."""
    files: str
    """The digest of its files: a checkpoint of the same step may be saved again."""
    dataset: str
    """The digest of the dataset."""
    metrics: dict[str, float] | None
    """The metrics on the validation split. None if the evaluation was skipped."""
    seconds: float = 0.0
    """The duration of the evaluation."""
    skipped_in_a_row: int = 0
    """The steps that were skipped just before it."""


def due_mark(is_due: bool) -> dict[str, Any]:
    """Return what a manifest holds among its metrics if its checkpoint is due for validation by other workers."""
    return {_DUE: True} if is_due else {}


def is_due(manifest: CheckpointManifest) -> bool:
    """Return whether the checkpoint was marked when it was saved."""
    return bool(manifest.metrics.get(_DUE))


def validation_of(manifest: CheckpointManifest, metrics: dict[str, float] | None, seconds: float = 0.0) -> Validation:
    """Return the outcome of a checkpoint. metrics: None if its evaluation was skipped."""
    return Validation(
        manifest.step,
        digest_of(manifest.files),
        manifest.dataset_digest,
        metrics,
        seconds,
        manifest.metrics.get("skipped_in_a_row", 0),
    )


def is_in(record: Iterable[Validation], manifest: CheckpointManifest) -> bool:
    """Return whether the record holds the outcome of this very checkpoint."""
    files = digest_of(manifest.files)
    return any((each.step, each.files) == (manifest.step, files) for each in record)


def read_validations(run_dir: Path) -> list[Validation]:
    """Return the record, in the order of steps; empty if there is none. Raises UserError if it cannot be understood."""
    path = run_dir / FILE
    try:
        return [Validation(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error!r}); the file was edited or damaged. Delete it, and checkpoints that are kept are "
            "evaluated again"
        ) from None


def write_validations(run_dir: Path, record: Sequence[Validation]) -> None:
    """Replace the record."""
    write_json_atomically(run_dir / FILE, [asdict(each) for each in sorted(record, key=lambda each: each.step)])


def with_validations(
    state: State, record: Iterable[Validation], dataset: str, stopping: EarlyStoppingConfig | None
) -> State:
    """Return the state with the evaluations of its steps that its best value does not count yet.

    Args:
        state: The state of a checkpoint.
        record: The record of the run, in the order of steps.
        dataset: The digest of the dataset. Metrics on others, such as the one before logs were appended, do not compare.
        stopping: The settings of early stopping.
    """
    if stopping is None:
        return state
    for each in record:
        if each.metrics is None or each.dataset != dataset or not state.counted < each.step <= state.step:
            continue
        best = best_after(state.best, each.metrics, each.step, each.skipped_in_a_row, stopping)
        state = replace(state, best=best, counted=each.step)
    return state


class Pins:
    """The checkpoints that retention keeps because their validation is pending. Reads the record when it is made."""

    def __init__(self, run_dir: Path) -> None:
        self._record = read_validations(run_dir)

    def __call__(self, path: Path) -> bool:
        """Return whether the checkpoint is due for validation and not in the record."""
        try:
            manifest = checkpoint_folder.read(path)
        except CheckpointError:  # nobody can evaluate it
            return False
        return is_due(manifest) and not is_in(self._record, manifest)


def line_of(validation: Validation) -> dict[str, Any]:
    """Return the values of its line in metrics.jsonl. The metrics must be known."""
    return {**(validation.metrics or {}), "seconds": validation.seconds}


def validated_steps(lines: Iterable[dict[str, Any]]) -> set[int]:
    """Return the steps of the evaluations among the lines of metrics.jsonl."""
    return {line["step"] for line in lines if line["kind"] == "validation"}


def without_line(record: Iterable[Validation], validated: Collection[int], step: int) -> list[Validation]:
    """Return the evaluations up to `step` that are not among the validated steps."""
    return [each for each in record if each.metrics is not None and each.step <= step and each.step not in validated]
