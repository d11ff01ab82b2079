"""Speed of a training and balance of its ranks, for people to read."""

import time

from trainer.loop.step_result import StepResult

SEND_EVERY_SECONDS = 0.5


class Pace:
    """Events per second since the start, the time left, and the imbalance of the ranks."""

    def __init__(self, step: int, world_size: int) -> None:
        self._started = time.monotonic()
        self._sent = self._started
        self._first_step = step
        self._world_size = world_size
        self._events = self._targets = self._events_since_line = self._most_since_line = 0
        self._paused = 0.0

    def count(self, step: int, result: StepResult, total_steps: int) -> dict[str, float]:
        """Count a step, and return the events per second and the seconds left."""
        self._events += result.num_events
        self._targets += result.num_targets
        self._events_since_line += result.num_events
        self._most_since_line += result.most_events
        elapsed = max(1e-9, time.monotonic() - self._started - self._paused)
        per_step = elapsed / max(1, step - self._first_step)
        return {
            "events_per_second": self._events / elapsed,
            "targets_per_second": self._targets / elapsed,
            "seconds_left": per_step * (total_steps - step),
        }

    def imbalance(self) -> float:
        """Return the events of the largest share over the mean share since the last call. 1.0 if all are equal.

        The ranks wait for each other at every step, so the events of the largest share are summed step by step.
        """
        most = self._most_since_line
        events = self._events_since_line
        self._most_since_line = 0
        self._events_since_line = 0
        return most * self._world_size / events if events else 1.0

    def pause(self, seconds: float) -> None:
        """Subtract time that was not spent on steps."""
        self._paused += seconds

    def may_send(self) -> bool:
        """Return True if the last message was sent SEND_EVERY_SECONDS ago or earlier, and count this as sent."""
        now = time.monotonic()
        if now - self._sent < SEND_EVERY_SECONDS:
            return False
        self._sent = now
        return True
