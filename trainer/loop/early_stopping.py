"""Early stopping: which evaluation was the best, and when to stop after it. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import replace

from trainer.config.train import EarlyStoppingConfig
from trainer.loop.state import State
from trainer.tasks.metrics import larger_is_better


def after_validation(state: State, metrics: Mapping[str, float], stopping: EarlyStoppingConfig | None) -> State:
    """Return the state after an evaluation of the validation split, with the best value so far."""
    if stopping is None:
        return state
    smaller_is_better = not larger_is_better(stopping.metric)
    # A model without a finite loss in its last step is never the best, whatever its metrics are.
    value = math.nan if state.skipped_in_a_row else metrics[stopping.metric]
    return replace(state, best=state.best.after(value, state.step, smaller_is_better))


def out_of_patience(state: State, stopping: EarlyStoppingConfig | None) -> bool:
    """Return True if the last `patience` evaluations brought no improvement."""
    return stopping is not None and state.best.evaluations_since >= stopping.patience
