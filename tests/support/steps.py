"""Reading and observation of the steps of a training."""

from collections.abc import Callable
from typing import Any

from trainer.data.stream.order import Position
from trainer.data.stream.shares import Step
from trainer.loop.step_result import StepResult
from trainer.loop.train import Training


def first_step(training: Training) -> Step[Any]:
    """Return the first step of a training. Collective, since ranks exchange examples."""
    with training.stream.read_ahead(Position(0, 0), 1) as steps:
        return next(iter(steps))


def observe_steps(
    training: Training,
    after: Callable[[Any, int, StepResult], None],
    before: Callable[[Any, int], None] = lambda batch, number: None,
) -> None:
    """Call functions around each step of a training that reads its results at once.

    Args:
        training: The training.
        after: Called after a step with the batch on the CPU, the number of the step from 0, and its result.
        before: Called before it with batch and number.
    """
    start = training.step.start

    def observed(batch: Any, number: int, *rest: Any) -> Any:
        before(batch, number)
        started = start(batch, number, *rest)
        assert started.result is not None
        after(batch, number, started.result)
        return started

    object.__setattr__(training.step, "start", observed)
