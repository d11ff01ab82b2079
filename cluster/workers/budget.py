"""Budget of failures: how many are allowed within an hour, how many without progress, and how long to wait. No ray."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cluster.config.run_config import RecoveryConfig

HOUR = 3600.0
LONGEST_WAIT = 30.0

Kind = Literal["failure", "preemption"]


@dataclass
class Budget:
    """Failures of the last hour, and failures in a row without progress."""

    limits: RecoveryConfig
    clock: Callable[[], float] = time.monotonic
    _times: dict[Kind, list[float]] = field(default_factory=lambda: {"failure": [], "preemption": []})
    _step: int = -1
    _in_a_row: int = 0

    def count(self, kind: Kind, step: int) -> str | None:
        """Count a failure, and return why the run must end, or None if workers may be restarted.

        step: newest step that any attempt has reached.
        """
        now = self.clock()
        times = self._times[kind]
        times[:] = [time for time in times if now - time < HOUR]
        times.append(now)
        if kind == "preemption":
            allowed = self.limits.preemptions_per_hour
            return None if allowed is None or len(times) <= allowed else f"{len(times)} preemptions within an hour"
        self._in_a_row = self._in_a_row + 1 if step <= self._step else 1
        self._step = max(step, self._step)
        if len(times) > self.limits.failures_per_hour:
            if not self.limits.failures_per_hour:
                return "cluster.recovery.failures_per_hour is 0"
            return f"{len(times)} failures within an hour (cluster.recovery.failures_per_hour)"
        if self._in_a_row > self.limits.same_step_failures:
            return f"{self._in_a_row} failures in a row without a step beyond {step:,} (cluster.recovery.same_step_failures)"
        return None

    def number(self, kind: Kind) -> int:
        """Return the number of failures within the last hour."""
        return len(self._times[kind])

    def wait(self, kind: Kind) -> float:
        """Return the seconds to wait before the restart: none before the first of an hour, then doubled each time."""
        number = self.number(kind)
        if kind == "preemption" or number < 2:
            return 0.0
        return min(LONGEST_WAIT, self.limits.backoff_seconds * 2.0 ** (number - 2))
