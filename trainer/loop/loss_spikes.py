"""Loss spikes: losses far above the recent ones, by a rule that single spikes do not move.

A loss is a spike above median + deviations * scale of the recent losses. The scale is 1.4826 times the median absolute deviation,
which for normal noise is the standard deviation. The losses are those of the global batch, which all ranks receive from one
all-reduce, so all ranks decide the same and exchange nothing more. The recent losses are part of a checkpoint, so a resumed run
decides as an uninterrupted one.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from trainer.config.guards import LossSpikesConfig
from trainer.errors import LossSpikeError
from trainer.loop.progress import Messages
from trainer.loop.state import State
from trainer.loop.step_result import StepResult

NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
LEAST_SHARE = 0.01  # of the median: the smallest scale, for losses that hardly change


def loss_limit(recent: Sequence[float], config: LossSpikesConfig) -> float:
    """Return the loss above which a step is a spike; infinity while there are too few recent losses."""
    if len(recent) < config.window:
        return math.inf
    median = statistics.median(recent)
    deviation = statistics.median(abs(loss - median) for loss in recent)
    return median + config.deviations * max(NORMAL * deviation, LEAST_SHARE * abs(median))


class LossSpikes:
    """The guard of one training against loss spikes. Without a config it does nothing."""

    def __init__(self, config: LossSpikesConfig | None, messages: Messages) -> None:
        self._config = config
        self._messages = messages
        self._warned = -math.inf  # step of the last warning

    def limit(self, state: State) -> float:
        """Return the loss above which the next step must not be applied."""
        if self._config is None or self._config.action == "warn":
            return math.inf
        return loss_limit(state.recent_losses, self._config)

    def after(self, result: StepResult, state: State) -> State:
        """Return the state with the loss of the step among the recent ones, and warn of a spike.

        Args:
            result: The result of the step; the same on every rank, so all ranks raise or none does.
            state: The state after it.

        Raises:
            LossSpikeError: More than guards.loss_spikes.max_skipped steps in a row were skipped.
        """
        config = self._config
        if config is None or not math.isfinite(result.loss):
            return state
        limit = loss_limit(state.recent_losses, config)
        if result.loss > limit and state.step - self._warned > config.window:
            self._warned = state.step
            done = "No worker applied it; metrics.jsonl has its rows" if result.spiked else "It was applied"
            self._messages.warn(
                f"step {state.step}: the loss {result.loss:.4g} is above {limit:.4g}, which is far above the last "
                f"{config.window} losses (guards.loss_spikes). {done}. There is no further warning within {config.window} steps"
            )
        if result.spiked and state.skipped_in_a_row > config.max_skipped:
            raise LossSpikeError(
                f"training: {state.skipped_in_a_row} steps in a row, up to step {state.step}, were skipped for a loss above "
                f"{limit:.4g}; the last one is {result.loss:.4g}. The losses stay high, so these are no single spikes. Resume "
                'from the newest checkpoint with a higher guards.loss_spikes.deviations, or with action = "warn", or lower '
                "a learning rate in another run.dir"
            )
        if not result.applied:
            return state
        return replace(state, recent_losses=(*state.recent_losses, result.loss)[-config.window :])
