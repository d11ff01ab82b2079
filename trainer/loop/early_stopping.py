"""Early stopping: which evaluation was the best, and when to stop after it. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import replace

from trainer.config.train import EarlyStoppingConfig
from trainer.loop.state import Best, State
from trainer.tasks.metrics import larger_is_better


def after_validation(state: State, metrics: Mapping[str, float], stopping: EarlyStoppingConfig | None) -> State:
    """Return the state after an evaluation of the validation split, with the best value so far."""
    if stopping is None:
        return state
    best = best_after(state.best, metrics, state.step, state.skipped_in_a_row, stopping)
    return replace(state, best=best, counted=state.step)


def best_after(
    best: Best, metrics: Mapping[str, float], step: int, skipped_in_a_row: int, stopping: EarlyStoppingConfig
) -> Best:
    """Return the best evaluation after another one.

    Args:
        best: The best so far.
        metrics: Those of the validation split.
        step: The steps trained.
        skipped_in_a_row: The steps that were skipped just before it.
        stopping: The settings of early stopping.
    """
    smaller_is_better = not larger_is_better(stopping.metric)
    # A model without a finite loss in its last step is never the best, whatever its metrics are.
    value = math.nan if skipped_in_a_row else metrics[stopping.metric]
    return best.after(value, step, smaller_is_better)


def out_of_patience(state: State, stopping: EarlyStoppingConfig | None) -> bool:
    """Return True if the last `patience` evaluations brought no improvement."""
    return stopping is not None and state.best.evaluations_since >= stopping.patience
