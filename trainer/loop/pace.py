"""How fast training goes, and how evenly the ranks share it, for people to read. Knows no torch and no step but its counts."""

import time

from trainer.loop.step import StepResult

SEND_EVERY_SECONDS = 0.5


class Pace:
    """Events per second since the start, the time left, and how evenly the ranks share the work."""

    def __init__(self, step: int, world_size: int) -> None:
        self._started = self._sent = time.monotonic()
        self._first_step = step
        self._world_size = world_size
        self._events = self._targets = self._events_since_line = self._most_since_line = 0
        self._paused = 0.0

    def count(self, step: int, result: StepResult, total_steps: int) -> dict[str, float]:
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
        """Events of the rank with most over their mean, 1.0 where all have equally many, since this was last asked.

        The ranks wait for each other at every step, so the events of the largest share are summed step by step.
        """
        most, events = self._most_since_line, self._events_since_line
        self._most_since_line = self._events_since_line = 0
        return most * self._world_size / events if events else 1.0

    def pause(self, seconds: float) -> None:
        """Time that was not spent on steps."""
        self._paused += seconds

    def may_send(self) -> bool:
        now = time.monotonic()
        if now - self._sent < SEND_EVERY_SECONDS:
            return False
        self._sent = now
        return True
