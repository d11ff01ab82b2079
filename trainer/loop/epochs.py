"""Timetable of training by epochs. An epoch is one pass over all examples."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sharding.world import World
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.train import TrainConfig
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.order import Position, position_of
from trainer.loop.state import Best, State, saved_state
from trainer.loop.timetable import Due


@dataclass(frozen=True)
class EpochTimetable:
    """The epochs of a training."""

    train: TrainConfig
    """The settings of training."""
    grew: bool
    """True if logs were appended to the dataset since the checkpoint from which training resumes."""

    @property
    def end(self) -> int:
        """The number of epochs."""
        return self.train.epochs

    def fresh(self) -> State:
        """Return the state of a run that has trained nothing."""
        return State()

    def resumed(self, checkpoint: StoredCheckpoint) -> tuple[State, None]:
        """Return the state of the checkpoint; if the dataset has grown, at the start of its epoch and without a best value."""
        saved = checkpoint.manifest
        state = saved_state(saved, position_of(saved.position, saved.num_rows))
        if self.grew:
            # A grown dataset has another order, so the epoch starts again. Earlier values of the metric do not compare.
            state = replace(state, position=Position(state.position.epoch, 0), best=Best())
        return state, None

    def epoch_ends(self, state: State, batches: GlobalBatches, world: World) -> tuple[Tensor, State]:
        """Return the steps at which epochs end, and the state with its `extra_steps`. Collective.

        Steps before logs were appended stay counted. Epochs from there on are as long as the dataset is now.
        """
        max_steps = self.train.max_steps
        has_grown = self.grew or state.extra_steps != 0
        steps = _steps_of_epochs(self.train.epochs, batches, world, None if has_grown else max_steps)
        if self.grew:
            state = replace(state, extra_steps=state.step - int(steps[: state.position.epoch].sum()))
        ends = steps.cumsum(0) + state.extra_steps
        total = ends[-1:] if max_steps is None else ends[-1:].clamp(max=max_steps)
        return torch.cat((ends[ends < total], total)), state

    def due_at(self, position: Position) -> Due:
        """Return a validation at the end of every `evaluate_every_epochs`-th epoch."""
        is_end = position.trained == 0
        return Due(validation=is_end and position.epoch % self.train.evaluate_every_epochs == 0)

    def progress_of(self, epoch: int) -> dict[str, Any]:
        """Return nothing: the number of an epoch tells all."""
        return {}

    def record_at(self, position: Position) -> None:
        """Return None: the position of a manifest tells all."""


def _steps_of_epochs(epochs: int, batches: GlobalBatches, world: World, limit: int | None) -> Tensor:
    """Return the steps of each epoch, (epochs,) int64, counted up to `limit`. Collective.

    Under a budget of events, counting goes through all examples of an epoch, so the ranks share the epochs.
    """
    steps = torch.zeros(epochs, dtype=torch.int64)
    for first in range(0, epochs, world.world_size):
        epoch = first + world.rank
        count = batches.count_steps(epoch if epoch < epochs else None, limit)
        if epoch < epochs:
            steps[epoch] = count
    return world.sum(steps.to(world.device)).cpu()
