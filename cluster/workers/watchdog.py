"""Detection of ranks that stopped: without a sign of life, or too long in one phase. No ray.

A rank that hangs keeps the others waiting in a collective, and their timeout names the healthy ones. So the rank to blame is
the one that is silent, or the one that is furthest behind.
"""

from collections.abc import Mapping

from cluster.config.run_config import RecoveryConfig
from cluster.workers.failures import phase_text
from cluster.workers.mailbox import Beat

_ORDER = ("start", "data", "step", "evaluation", "checkpoint")  # of phases within a step
LONGEST_GAP = 5.0  # seconds between two looks after which the driver itself was stopped, and knows nothing


class Watchdog:
    """Looks at the signs of life of all ranks again and again."""

    def __init__(self, limits: RecoveryConfig) -> None:
        self._limits = limits
        self._looked: float | None = None
        self._first_step: int | None = None

    def look(self, beats: Mapping[int, Beat], now: float) -> dict[int, str]:
        """Return the ranks to kill, with the reason of each; usually none.

        Args:
            beats: the last sign of life of each rank.
            now: seconds of a monotonic clock.
        """
        before, self._looked = self._looked, now
        if before is None or now - before > LONGEST_GAP or not beats:
            return {}
        silent = {rank: beat for rank, beat in beats.items() if beat.age > self._limits.heartbeat_seconds}
        if silent:
            return {
                rank: f"stopped {phase_text(beat)}, without a sign of life for {beat.age:.0f} s"
                for rank, beat in silent.items()
            }
        if self._first_step is None:
            self._first_step = min((beat.step for beat in beats.values() if beat.phase != "start"), default=None)
        behind = min(_progress(beat) for beat in beats.values())
        late = {rank: beat for rank, beat in beats.items() if _progress(beat) == behind}
        budget, setting = self._budget(next(iter(late.values())))
        if min(beat.seconds + beat.age for beat in late.values()) <= budget:
            return {}
        return {
            rank: f"made no progress {phase_text(beat)} for {beat.seconds + beat.age:.0f} s (cluster.recovery.{setting})"
            for rank, beat in late.items()
        }

    def _budget(self, beat: Beat) -> tuple[float, str]:
        """Return how long a phase may last, and the name of the setting."""
        limits = self._limits
        match beat.phase:
            case "start":
                return limits.start_seconds, "start_seconds"
            case "evaluation":
                return limits.evaluation_seconds, "evaluation_seconds"
            case "checkpoint":
                return limits.checkpoint_seconds, "checkpoint_seconds"
            case _ if beat.step == self._first_step:
                return limits.first_step_seconds, "first_step_seconds"
            case _:
                return limits.step_seconds, "step_seconds"


def _progress(beat: Beat) -> tuple[int, int]:
    """Return how far a rank is. An evaluation or a checkpoint follows the step that it is named after."""
    order = _ORDER.index(beat.phase) if beat.phase in _ORDER else len(_ORDER)
    if beat.phase in ("data", "step"):
        return beat.step + 1, order
    return beat.step if beat.phase != "start" else -1, order
