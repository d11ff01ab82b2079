"""Checkpoints of a training: the one from which it resumes, and those that it saves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.background import BackgroundSaver, Saved
from trainer.checkpoint.finite import broken_tensors, broken_weights_message, refuse_broken_checkpoint
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.keys import tensors_of
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.day_examples import DayExamples
from trainer.data.stream.examples import Examples
from trainer.errors import CheckpointError, NonFiniteWeightsError, first_line
from trainer.fault_points import reach
from trainer.loop.build import Built, load_checkpoint
from trainer.loop.progress import Messages
from trainer.loop.same_run import check_same_run
from trainer.loop.state import State
from trainer.loop.timetable import Timetable
from trainer.loop.validations import Pins, due_mark, read_validations, with_validations
from trainer.optim.ema import WeightEma

SECONDS_TO_END = 10.0  # of a checkpoint that is being written when training fails; other ranks may be gone


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


@dataclass
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
    before_write: Callable[[], object] = lambda: None
    """Called on every rank, in the thread that writes a checkpoint, before the checkpoint is written. It must not raise."""

    def __post_init__(self) -> None:
        self._best: dict[int, State] = {}
        self._saver = BackgroundSaver(
            self.job.checkpoints_dir,
            self.world,
            self.job.config.checkpoint.background,
            self._after_commit,
            self.job.config.storage.policy,
            self.messages.warn,
            before_write=lambda: self.before_write(),
        )

    def tensors(self) -> dict[str, Any]:
        """Return the tensors to save, by name. Those of the model and the optimizers share their memory. Collective."""
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
        # Other workers may have validated it, and earlier ones, after they were saved. The driver may write meanwhile.
        record = self.world.on_first(lambda: read_validations(self.job.run_dir))
        state = with_validations(state, record, self.manifest.digest, self.job.config.train.early_stopping)
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
            raise NonFiniteWeightsError("weights are not finite", tuple(names), step)  # explained by `kept`

    def save(self, state: State, examples: Examples | DayExamples, must: bool, is_due: bool = False) -> None:
        """Save a checkpoint. It is written while training continues, after the previous one. Collective.

        Args:
            state: The state of the training.
            examples: What the data position counts.
            must: Wait until it is written, and fail if it cannot be.
            is_due: Mark it as due for validation by other workers.

        Raises:
            NonFiniteWeightsError: A weight or optimizer state is not finite, of this checkpoint or of the previous one. Nothing of
                it was written.
            CheckpointError: It could not be written, unless the run continues without.
        """
        described = self._describe(state, examples, {})
        described = replace(described, metrics={**described.metrics, **due_mark(is_due)})

        def describe(files: dict[str, dict[str, Any]]) -> CheckpointManifest:
            return replace(described, files=dict(files))

        with self._tolerated(must):
            self._saver.finish()
        self._best = {state.step: state}
        with self._tolerated(must):
            self._saver.save(self.tensors(), describe, state.step)
            if must:
                self._saver.finish()

    def has_failed(self) -> bool:
        """Return True if a checkpoint could not be written and the run must end for it. Any rank may ask."""
        error = self._saver.error
        tolerated = isinstance(error, CheckpointError) and self.job.config.checkpoint.on_error == "continue"
        return error is not None and not tolerated

    def finish(self) -> None:
        """Wait until the last checkpoint is written. Collective. Raises what `save` raises."""
        with self._tolerated(must=True):
            self._saver.finish()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let the checkpoint that is being written end if the body fails, so that it is committed, or leaves no attempt.

        Explains the body's error of weights that are not finite.
        """
        try:
            yield
        except NonFiniteWeightsError as error:
            raise self._explained(error) from None
        except BaseException:
            self._saver.wait(SECONDS_TO_END)
            raise

    def collect(self) -> list[Saved]:
        """Return the checkpoints that were committed since the last call."""
        return self._saver.collect()

    @contextmanager
    def _tolerated(self, must: bool) -> Iterator[None]:
        """Explain errors of the body. A checkpoint that could not be written is a warning if the run continues without."""
        try:
            yield
        except NonFiniteWeightsError as error:
            raise self._explained(error) from None
        except CheckpointError as error:
            if must or self.job.config.checkpoint.on_error == "stop":
                raise
            self.messages.warn(f"{error}; training continues without it (checkpoint.on_error)")

    def _explained(self, error: NonFiniteWeightsError) -> NonFiniteWeightsError:
        """Return the error with its causes and the newest checkpoint, which may still be written: this waits for it."""
        self._saver.wait(SECONDS_TO_END)
        if not error.names:  # explained before
            return error
        return NonFiniteWeightsError(broken_weights_message(error.names, self.job, error.step))

    def _after_commit(self, step: int) -> None:
        """Note the best checkpoint, and retire old ones. On the first rank, in the thread that wrote the checkpoint."""
        state = self._best.pop(step)
        if not self.world.is_first:
            return
        reach("reporting", self.world.rank, step)
        if state.best.step == step:
            self._note_best(state)
        try:
            self._retire()
        except OSError as error:  # of an object storage that does not answer
            self.messages.warn(f"old checkpoints could not be deleted ({first_line(error)}); it will be tried again")

    def _retire(self) -> None:
        """Delete old checkpoints, except those that other workers have not validated yet."""
        keep = self.job.config.checkpoint.keep
        # The record is read before best.json, in the reverse order of the driver's writes.
        is_pinned = Pins(self.job.run_dir) if self.job.evaluates_concurrently else lambda path: False
        checkpoint_folder.retire(self.job.checkpoints_dir, keep, self.messages.warn, is_pinned)

    def _note_best(self, state: State) -> None:
        """Write best.json, which names the best checkpoint. Only the first rank writes; with concurrent evaluation the driver."""
        if self.job.evaluates_concurrently:
            return
        stopping = self.job.config.train.early_stopping
        best = state.best
        if self.world.is_first and stopping is not None and best.value is not None:
            try:
                checkpoint_folder.write_best(self.job.checkpoints_dir, best.step, stopping.metric, best.value)
            except OSError as error:
                if (
                    self.job.config.checkpoint.on_error == "stop"
                ):  # evaluation would take an earlier checkpoint for the best
                    raise
                # The next start writes it from the checkpoint.
                self.messages.warn(f"{self.job.checkpoints_dir / 'best.json'}: could not be written ({error})")

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
