"""Results of concurrent evaluations: the record, the best checkpoint, and the decision to stop early. No ray, no torch."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import CheckpointManifest
from trainer.config.train import EarlyStoppingConfig
from trainer.loop.early_stopping import out_of_patience
from trainer.loop.state import Best, State
from trainer.loop.validations import (
    Validation,
    is_in,
    read_validations,
    validation_of,
    with_validations,
    write_validations,
)


class Promotion:
    """The evaluations of one training, as its own loop would have counted them.

    Args:
        run_dir: the run folder, with the record of earlier commands.
        dataset: the digest of the dataset.
        stopping: the settings of early stopping; None: no checkpoint is the best.
    """

    def __init__(self, run_dir: Path, dataset: str, stopping: EarlyStoppingConfig | None) -> None:
        self._run_dir = run_dir
        self._dataset = dataset
        self._stopping = stopping
        self._record = read_validations(run_dir)
        self._start = State()

    def start(self, state: State) -> None:
        """Begin with the state from which training starts. Evaluations of later steps are forgotten, as training repeats them."""
        self._start = state
        kept = [each for each in self._record if each.step <= state.step]
        if len(kept) < len(self._record):
            self._store(kept)
        self._note_best()

    def add(self, manifest: CheckpointManifest, metrics: Mapping[str, float] | None, seconds: float = 0.0) -> None:
        """Add the outcome of a checkpoint, and write best.json if it is the best. metrics: None if its evaluation was skipped."""
        others = [each for each in self._record if each.step != manifest.step]
        added = validation_of(manifest, None if metrics is None else dict(metrics), seconds)
        before = self._record
        self._record = sorted((*others, added), key=lambda each: each.step)
        try:
            self._note_best()  # before the record, with which retention may delete the checkpoint
            write_validations(self._run_dir, self._record)
        except BaseException:
            self._record = before
            raise

    def has(self, manifest: CheckpointManifest) -> bool:
        """Return whether the outcome of this very checkpoint is known."""
        return is_in(self._record, manifest)

    @property
    def record(self) -> list[Validation]:
        """Return all outcomes, in the order of steps."""
        return list(self._record)

    @property
    def best(self) -> Best:
        """Return the best evaluation so far. Its value is None if there is none."""
        return self._state.best

    @property
    def is_out_of_patience(self) -> bool:
        """Return whether the last evaluations brought no improvement, so that training is to end."""
        return out_of_patience(self._state, self._stopping)

    @property
    def _state(self) -> State:
        start = replace(self._start, step=sys.maxsize)
        return with_validations(start, self._record, self._dataset, self._stopping)

    def _note_best(self) -> None:
        """Write best.json, unless it names the best checkpoint already."""
        best = self.best
        if self._stopping is None or best.value is None:
            return
        folder = self._run_dir / "checkpoints"
        noted = {"step": best.step, "metric": self._stopping.metric, "value": best.value}
        if checkpoint_folder.read_best(folder) != noted:
            checkpoint_folder.write_best(folder, best.step, self._stopping.metric, best.value)

    def _store(self, record: list[Validation]) -> None:
        write_validations(self._run_dir, record)
        self._record = record
