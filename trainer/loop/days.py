"""Timetable of daily training: one day after another, from one command to the next, while the logs grow.

Between two days the dataset may grow: appended impressions belong to later days, which are trained next. Within a day it may grow
as well, as long as the impressions of that day stay as they are: its order is then unchanged, and resuming is exact.

The invariant: no day is trained twice. Late rows of a trained day are reported, never trained.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharding.world import World
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.train import TrainConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.days import Days
from trainer.data.stream.global_batches import GlobalBatches
from trainer.data.stream.order import Position, steps_per_epoch
from trainer.errors import CheckpointError
from trainer.loop.same_run import parts_digest
from trainer.loop.state import State, saved_state
from trainer.loop.timetable import Due


@dataclass(frozen=True)
class DailyTimetable:
    """The days of a training."""

    train: TrainConfig
    """The settings of training."""
    days: Days
    """The impressions of each day."""
    manifest: Manifest
    """That of the dataset."""

    @property
    def end(self) -> int:
        """The number of the first day of the validation period."""
        return self.days.stop

    def fresh(self) -> State:
        """Return the state of a run that has trained nothing: at the first day."""
        return State(position=Position(self.days.first, 0))

    def resumed(self, checkpoint: StoredCheckpoint) -> tuple[State, str | None]:
        """Return the state of the checkpoint at its position among the days as they are now, and a warning of late impressions.

        Raises CheckpointError if the day of the checkpoint has changed, or is held out now.
        """
        position, warning = position_among(self.days, checkpoint)
        return saved_state(checkpoint.manifest, position), warning

    def epoch_ends(self, state: State, batches: GlobalBatches, world: World) -> tuple[Tensor, State]:
        """Return the steps at which the remaining days end, and the state as it is.

        What was trained before does not matter: it may have been more or less than past days hold now.
        """
        position = state.position
        num_rows = [self.days.num_rows(day) for day in range(position.epoch, self.days.stop)]
        if num_rows:
            num_rows[0] -= position.trained
        steps = [steps_per_epoch(rows, self.train.batch_size) for rows in num_rows]
        limit = max(state.step, self.train.max_steps or state.step + sum(steps))
        ends: Tensor = (state.step + torch.tensor([0, *steps]).cumsum(0)).clamp(max=limit).unique_consecutive()
        return ends, state

    def due_at(self, position: Position) -> Due:
        """Return an evaluation of the next day at the end of each day."""
        return Due(next_day=position.trained == 0)

    def progress_of(self, epoch: int) -> dict[str, Any]:
        """Return the name of the day: its first moment."""
        return {"day": self.days.calendar.name_of(epoch)}

    def record_at(self, position: Position) -> dict[str, Any]:
        """Return what a manifest records of the days.

        day, trained: the position. begins: the first moment of that day. content: a hash of its impressions. impressions: their
        number on all days before it. generation, parts: the files of the dataset, by which a later dataset can be recognised as
        the same with more.
        """
        return {
            "day": position.epoch,
            "begins": self.days.calendar.name_of(position.epoch),
            "trained": position.trained,
            "content": int(self.days.content[position.epoch - self.days.first]),
            "impressions": self.days.impressions_before(position.epoch),
            "generation": self.manifest.generation,
            "parts": parts_digest(self.manifest, self.manifest.generation),
        }


def position_among(days: Days, checkpoint: StoredCheckpoint) -> tuple[Position, str | None]:
    """Return the position of a checkpoint among the days as they are now, and a warning of late impressions.

    Raises CheckpointError if its day has changed, or is held out now.
    """
    saved = checkpoint.manifest.days
    assert saved is not None
    day, trained = saved["day"], saved["trained"]
    begins = days.calendar.name_of(day)
    if day + (trained > 0) > days.stop:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: was trained up to {begins}{' and beyond' if trained else ''}, and "
            f"split.validation_time is now {days.calendar.name_of(days.stop)}, so held-out impressions were trained; set it to a "
            "later time, or choose another run.dir"
        )
    if trained and int(days.content[day - days.first]) != saved["content"]:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: is within the day that begins at {begins}, and impressions of that day were added to "
            "the dataset since, so its order has changed. Checkpoints at the end of a day resume with more logs: append logs of "
            "whole days. To train this day again as it is now, delete that checkpoint, if one of the end of the day before is left "
            "(`shoal checkpoint list`); otherwise choose another run.dir"
        )
    num_late = days.impressions_before(day) - saved["impressions"]
    warning = None
    if num_late:
        warning = f"{num_late:,} impressions were added to days before {begins}, which were trained already; they are not trained"
    return Position(day, trained), warning
