"""Evaluations of a model while it trains: of the validation split, and in daily training of the day that is trained next."""

import time
from contextlib import AbstractContextManager, nullcontext

from sharding.world import World
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.loop.build import Built
from trainer.loop.early_stopping import after_validation
from trainer.loop.progress import TrainingProgress
from trainer.loop.state import State
from trainer.optim.ema import WeightEma
from trainer.tasks.task import Evaluator


class Evaluations:
    """Evaluates with the weights that count: their moving average, if there is one. Trained weights stay as they are."""

    def __init__(
        self,
        job: Job,
        manifest: Manifest,
        world: World,
        built: Built,
        ema: WeightEma | None,
        progress: TrainingProgress,
    ) -> None:
        self._early_stopping = job.config.train.early_stopping
        self._model = built.model
        self._ema = ema
        self._progress = progress
        self.evaluator: Evaluator | None = None
        has_targets = bool(manifest.counts.validation_targets)
        self.are_concurrent = has_targets and job.evaluates_concurrently
        if has_targets and not self.are_concurrent:
            self.evaluator = built.task.evaluator("validation", world, built.dynamic)
        self._next_day = built.task.next_day(world, built.dynamic)

    def validate(self, state: State) -> State:
        """Evaluate the validation split, and return the state with the result. Collective.

        The state is unchanged without targets, and if other workers validate checkpoints.
        """
        if self.evaluator is None:
            return state
        started = time.monotonic()
        with self._progress.paused(), self._evaluated_weights():
            metrics = self.evaluator.mean_metrics(self._model, self._progress.evaluating)
        state = after_validation(state, metrics, self._early_stopping)
        self._progress.validated(state, metrics, time.monotonic() - started)
        return state

    def evaluate_next_day(self, state: State) -> None:
        """Evaluate the day that is trained next, if the run asks for it. Collective."""
        if self._next_day is None:
            return
        started = time.monotonic()
        with self._progress.paused(), self._evaluated_weights():
            results = self._next_day.metrics(self._model, state.position.epoch, self._progress.evaluating)
        if results is not None:
            self._progress.evaluated_next_day(state.step, results, time.monotonic() - started)

    def _evaluated_weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self._ema is None else self._ema.swapped_in()
