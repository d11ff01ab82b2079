"""Checkpoints of a training: the one from which it resumes, and those that it saves."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.finite import broken_tensors, broken_weights_message, refuse_broken_checkpoint
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.keys import tensors_of
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.day_examples import DayExamples
from trainer.data.stream.examples import Examples
from trainer.errors import NonFiniteWeightsError
from trainer.fault_points import reach
from trainer.loop.build import Built, load_checkpoint
from trainer.loop.progress import Messages
from trainer.loop.same_run import check_same_run
from trainer.loop.state import State
from trainer.loop.timetable import Timetable
from trainer.optim.ema import WeightEma


def checkpoint_to_resume(job: Job, manifest: Manifest, world: World, messages: Messages) -> StoredCheckpoint | None:
    """Return the newest checkpoint that verifies, or None if there is none. Warns of each that does not. Collective.

    Raises CheckpointError if it is of another run or dataset.
    """
    checkpoint, complaints = checkpoint_tensors.find_to_resume(job.checkpoints_dir, world)
    for complaint in complaints:
        messages.warn(f"{complaint}; going back to the one before")
    if checkpoint is not None:
        check_same_run(checkpoint, job, manifest)
    return checkpoint


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training."""

    job: Job
    """The run."""
    manifest: Manifest
    """The manifest of the dataset."""
    world: World
    """All ranks."""
    messages: Messages
    """Where reports go."""
    timetable: Timetable
    """The division of training into epochs or days."""
    built: Built
    """The model."""
    optimizers: Optimizers
    """The optimizers of its tables and dense weights."""
    ema: WeightEma | None
    """The moving average of the dense weights, if the run has one."""

    def tensors(self) -> dict[str, Any]:
        """Return the tensors to save, by name; they share their memory with the model and the optimizers."""
        built = self.built
        return tensors_of(built.sharded_model, built.tables, self.optimizers, built.state(), self.ema)

    def resume(self, checkpoint: StoredCheckpoint | None) -> State:
        """Load the checkpoint, if there is one, and return the state from which to train. Collective.

        Raises CheckpointError if the checkpoint does not fit the model or the days of the dataset, or is not finite.
        """
        self.optimizers.materialize_dense_state()
        if checkpoint is None:
            return self.timetable.fresh()
        state, warning = self.timetable.resumed(checkpoint)
        self.messages.warn(warning)
        load_checkpoint(checkpoint, self.built, self.optimizers, self.ema)
        refuse_broken_checkpoint(checkpoint, self.tensors(), self.world)
        # A process may have died between the commit and this note, or the newest checkpoint may have been corrupt.
        self._note_best(state)
        self.messages.send("resumed", step=state.step, path=str(checkpoint.path))
        return state

    def check_weights(self, step: int) -> None:
        """Raise NonFiniteWeightsError if a weight is not finite, so that none is evaluated. Collective."""
        names = broken_tensors(self.tensors(), self.world)
        if names:
            raise NonFiniteWeightsError(broken_weights_message(names, self.job, step))

    def save(self, state: State, examples: Examples | DayExamples) -> None:
        """Save a checkpoint, note it if it is the best, and retire old ones. Collective.

        Raises NonFiniteWeightsError, before anything is written, if a weight or optimizer state is not finite.
        """
        started = time.monotonic()
        folder = self.job.checkpoints_dir

        def describe(files: Mapping[str, dict[str, Any]]) -> CheckpointManifest:
            return self._describe(state, examples, dict(files))

        try:
            path = checkpoint_tensors.save(folder, self.tensors(), self.world, describe, state.step)
        except NonFiniteWeightsError as error:
            raise NonFiniteWeightsError(broken_weights_message(error.names, self.job, state.step)) from None
        if self.world.is_first:
            reach("reporting", self.world.rank, state.step)
            if state.best.step == state.step:
                self._note_best(state)
            checkpoint_folder.retire(folder, self.job.config.checkpoint.keep, self.messages.warn)
            self.messages.send("checkpoint", step=state.step, path=str(path), seconds=time.monotonic() - started)

    def _note_best(self, state: State) -> None:
        """Write best.json, which names the best checkpoint. Only the first rank writes."""
        stopping = self.job.config.train.early_stopping
        best = state.best
        if self.world.is_first and stopping is not None and best.value is not None:
            checkpoint_folder.write_best(self.job.checkpoints_dir, best.step, stopping.metric, best.value)

    def _describe(
        self, state: State, examples: Examples | DayExamples, files: dict[str, dict[str, Any]]
    ) -> CheckpointManifest:
        return CheckpointManifest(
            step=state.step,
            position=examples.number_of(state.position),
            num_rows=examples.of(state.position.epoch).num_examples,
            identity=self.job.identity,
            config=self.job.config_values,
            plan=self.built.planned_tables.plan.values(),
            dataset_digest=self.manifest.digest,
            metrics=state.to_saved(),
            versions={name: version(name) for name in ("torch", "torchrec")},
            files=files,
            days=self.timetable.record_at(state.position),
        )
