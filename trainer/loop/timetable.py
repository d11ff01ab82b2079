"""Timetable of a training: its division into epochs or days, and what is due when one ends.

The loop knows neither epochs nor days. It asks the timetable where to start, at which steps an epoch or day ends, and whether to
evaluate then. `Position.epoch` and all numbers called epoch hold the number of a day in daily training.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sharding.world import World
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.order import Position
from trainer.loop.state import State


@dataclass(frozen=True)
class Due:
    """Evaluations that are due at a position."""

    validation: bool = False
    """Of the validation split."""
    next_day: bool = False
    """Of the next day, before it is trained."""


class Timetable(Protocol):
    """A division of training into epochs or days."""

    @property
    def end(self) -> int:
        """The number of the first epoch or day that is not trained."""

    def fresh(self) -> State:
        """Return the state of a run that has trained nothing."""

    def resumed(self, checkpoint: StoredCheckpoint) -> tuple[State, str | None]:
        """Return the state from which training resumes, and a warning for the user if there is one.

        Raises CheckpointError if the dataset has changed so that training cannot resume.
        """

    def epoch_ends(self, state: State, batches: GlobalBatches, world: World) -> tuple[Tensor, State]:
        """Return the steps at which epochs or days end, (at least one,) int64, and the state with its `extra_steps`. Collective.

        The last entry is the last step of the training, which train.max_steps may bring forward.
        """

    def due_at(self, position: Position) -> Due:
        """Return the evaluations that are due at `position`. The loop adds a validation after the last step."""

    def progress_of(self, epoch: int) -> dict[str, Any]:
        """Return what a progress message tells of an epoch or day besides its number."""

    def record_at(self, position: Position) -> dict[str, Any] | None:
        """Return `days` of a checkpoint's manifest, or None where training goes by epochs."""
