"""The result of a step. The host and the device compute whether it is applied from the same numbers, by the same arithmetic.

The numbers are float64, (F,), summed over ranks, so all ranks decide the same. In this order: loss, ranks that found something not
finite, targets, requests to stop, requests for a checkpoint, events of each rank, seconds of each rank, for each table and for the
dense weights the ranks on which they were not finite; and with clipping the norm of the gradient.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

LOSS = 0
NUM_BROKEN = 1
NUM_TARGETS = 2
EVENTS = 5  # of the first rank


@dataclass(frozen=True)
class StepResult:
    """The result of a step, the same on every rank."""

    loss: float
    """Mean over the global targets; nan if there are none."""
    num_targets: int
    """Targets of the global batch."""
    num_events: int
    """Input events of all ranks."""
    most_events: int
    """Input events of the rank with most."""
    finite: bool
    """True if loss, gradients and weights are finite on all ranks."""
    stop_requested: bool
    """True if the first rank was asked to stop."""
    save_requested: bool = False
    """True if the first rank was asked for a checkpoint at once."""
    grad_norm: float | None = None
    """The norm of the whole gradient before clipping. None without clipping, or if nothing is applied."""
    broken: tuple[str, ...] = ()
    """Tables, and "" for the dense weights, that were not finite before the step on any rank. No later update can repair them."""
    rank_events: tuple[float, ...] = field(default=(), compare=False)
    """Input events of each rank."""
    rank_seconds: tuple[float, ...] = field(default=(), compare=False)
    """Seconds that each rank worked alone in an earlier step (trainer/loop/step_clock.py)."""

    spiked: bool = False
    """True if the loss is above the limit of this step."""

    @property
    def applied(self) -> bool:
        """True if weights were updated."""
        return self.finite and self.num_targets > 0 and not self.spiked

    @property
    def skipped(self) -> str | None:
        """The reason why the step is skipped, or None."""
        if not self.finite:
            return "not finite"
        return "loss spike" if self.spiked else None


def is_applied(numbers: Tensor, world_size: int, loss_limit: float, clips: bool) -> Tensor:
    """Return () bool on the device of the numbers: `StepResult.applied` of them. The host waits for nothing.

    Args:
        numbers: The numbers of the step.
        world_size: The number of ranks.
        loss_limit: The loss above which the step is not applied.
        clips: True if the last number is the norm of the gradient.
    """
    of_weights = numbers[EVENTS + 2 * world_size : -1 if clips else None]
    num_targets = numbers[NUM_TARGETS]
    applied = (numbers[NUM_BROKEN] == 0) & (of_weights == 0).all() & (num_targets > 0)
    applied &= ~(numbers[LOSS] / num_targets > loss_limit)
    return applied & numbers[-1].isfinite() if clips else applied


def result_of(
    numbers: Sequence[float], names: Sequence[str], world_size: int, loss_limit: float, clips: bool
) -> StepResult:
    """Return the result of a step.

    Args:
        numbers: The numbers of the step.
        names: The tables, and "" for the dense weights, in the order of the numbers.
        world_size: The number of ranks.
        loss_limit: The loss above which the step is not applied.
        clips: True if the last number is the norm of the gradient.
    """
    total, num_broken, num_targets, stops, saves, *others = numbers
    norm = others.pop() if clips else None
    events = others[:world_size]
    own_seconds = others[world_size : 2 * world_size]
    of_weights = others[2 * world_size :]
    result = StepResult(
        loss=total / num_targets if num_targets else float("nan"),
        num_targets=int(num_targets),
        num_events=int(sum(events)),
        most_events=int(max(events)),
        finite=num_broken == 0 and not any(of_weights),
        stop_requested=stops > 0,
        save_requested=saves > 0,
        rank_events=tuple(events),
        rank_seconds=tuple(own_seconds),
        broken=tuple(name for name, number in zip(names, of_weights, strict=True) if number),
    )
    # All ranks received the same numbers, so their decisions are equal.
    result = replace(result, spiked=result.finite and result.loss > loss_limit)
    if norm is None or not result.applied:
        return result
    # Numbers that are finite on every rank may have no finite sum.
    return replace(result, grad_norm=norm, finite=math.isfinite(norm))
