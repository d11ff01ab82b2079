"""State of a training: what the loop carries from one step to the next, besides tensors. Imports no torch."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from trainer.checkpoint.folder import CheckpointManifest
from trainer.data.stream.order import Position


@dataclass(frozen=True)
class Best:
    """The best evaluation so far, for early stopping."""

    value: float | None = None
    """Of the metric of train.early_stopping; None before the first finite value."""
    step: int = 0
    """The step after which it was measured."""
    evaluations_since: int = 0
    """Evaluations after it without an improvement."""

    def after(self, value: float, step: int, smaller_is_better: bool = False) -> "Best":
        """Return the best after another evaluation. A value that is not finite is no improvement."""
        improved = self.value is None or (value < self.value if smaller_is_better else value > self.value)
        if improved and math.isfinite(value):
            return Best(value, step, 0)
        return Best(self.value, self.step, self.evaluations_since + 1)


@dataclass(frozen=True)
class State:
    """Progress of a training after a number of steps."""

    step: int = 0
    """Steps trained."""
    position: Position = field(default_factory=lambda: Position(0, 0))
    """The data position after these steps."""
    best: Best = field(default_factory=Best)
    """The state of early stopping."""
    counted: int = 0
    """The step of the last evaluation that `best` counts. 0: of none, or of an earlier version."""
    skipped_steps: int = 0
    """Steps that were skipped since the start of the run: non-finite ones and loss spikes."""
    skipped_in_a_row: int = 0
    """Steps that were skipped since the last one that was not."""
    extra_steps: int = 0
    """Steps before the position, minus those that the dataset as it is now would take up to there. Negative if it has grown."""
    recent_losses: tuple[float, ...] = ()
    """Losses of the last applied steps, for the detection of spikes. Empty without it."""

    def moved_to(self, position: Position) -> "State":
        """Return the state after one more step was started, which ended at `position`."""
        return replace(self, step=self.step + 1, position=position)

    def after_result(self, trained: bool) -> "State":
        """Return the state now that the result of the last step is known. trained: it was not skipped."""
        return replace(
            self,
            skipped_steps=self.skipped_steps + (not trained),
            skipped_in_a_row=0 if trained else self.skipped_in_a_row + 1,
        )

    def to_saved(self) -> dict[str, Any]:
        """Return the part of the state that a manifest keeps under `metrics`. Step and position are fields of their own there."""
        losses = {"recent_losses": list(self.recent_losses)} if self.recent_losses else {}
        return {
            **losses,
            "best": asdict(self.best),
            "counted": self.counted,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "extra_steps": self.extra_steps,
        }


def saved_state(manifest: CheckpointManifest, position: Position) -> State:
    """Return the state that a checkpoint holds, at `position`."""
    saved = manifest.metrics
    return State(
        step=manifest.step,
        position=position,
        best=Best(**saved["best"]),
        counted=saved.get("counted", 0),  # checkpoints of earlier versions have none
        skipped_steps=saved["skipped_steps"],
        skipped_in_a_row=saved["skipped_in_a_row"],
        extra_steps=saved.get("extra_steps", 0),  # nor these
        recent_losses=tuple(saved.get("recent_losses", ())),
    )
