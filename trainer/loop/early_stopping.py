"""Early stopping: which evaluation was the best, and when to stop after it. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import replace

from trainer.config import EarlyStoppingConfig
from trainer.evaluation.ranking.names import LARGER_IS_BETTER
from trainer.loop.state import State


def after_validation(state: State, metrics: Mapping[str, float], stopping: EarlyStoppingConfig | None) -> State:
    """Return the state after an evaluation of the validation split, with the best value so far."""
    if stopping is None:
        return state
    smaller_is_better = not LARGER_IS_BETTER.get(stopping.metric.split("/")[0], True)
    # A model without a finite loss in its last step is never the best, whatever its metrics are.
    value = math.nan if state.skipped_in_a_row else metrics[stopping.metric]
    return replace(state, best=state.best.after(value, state.step, smaller_is_better))


def out_of_patience(state: State, stopping: EarlyStoppingConfig | None) -> bool:
    """Return True if the last `patience` evaluations brought no improvement."""
    return stopping is not None and state.best.evaluations_since >= stopping.patience
