"""Reactions to a non-finite step: a warning, or an end of the training."""

from trainer.checkpoint.finite import rates_of
from trainer.config.job import Job
from trainer.errors import NonFiniteLossError, NonFiniteWeightsError
from trainer.loop.progress import Messages
from trainer.loop.state import State
from trainer.loop.step_result import StepResult


def check_step(result: StepResult, state: State, job: Job, messages: Messages) -> None:
    """Warn of a non-finite step after one that was not skipped, and end the training after too many or if weights are broken.

    Args:
        result: The result of the step; the same on every rank, so all ranks raise or none does.
        state: The state after it.
        job: The run.
        messages: Where the warning goes.

    Raises:
        NonFiniteWeightsError: Weights were not finite before the step.
        NonFiniteLossError: More than train.max_nonfinite_steps in a row were not finite.
    """
    if result.broken:
        names = tuple(f"table.{name}.weight" if name else "dense" for name in result.broken)
        raise NonFiniteWeightsError("weights are not finite", names, state.step - 1)  # explained by Checkpoints.kept
    if result.finite:
        return
    if state.skipped_in_a_row == 1:
        messages.warn(f"step {state.step} was skipped: its loss or gradient is not finite; metrics.jsonl has its rows")
    if state.skipped_in_a_row > job.config.train.max_nonfinite_steps:
        raise NonFiniteLossError(
            f"training: the loss or gradient was not finite in {state.skipped_in_a_row} steps in a row, up to step {state.step}; "
            f"none of them was applied. A learning rate is probably too large: {rates_of(job)}. Lower it or raise "
            "train.warmup_steps, in another run.dir"
        )
