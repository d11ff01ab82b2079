"""Metrics of a whole training, computed by the driver from the events of its workers. No torch.

Goodput counts each step once: a step that is trained again after a restart from an earlier checkpoint counts as lost time.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

Clock = Callable[[], float]


class RunMetrics:
    """Values for monitoring since the start of a training by this command.

    send: receives the values by name.
    """

    def __init__(self, send: Callable[[dict[str, float]], None], clock: Clock = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._started = clock()
        self._first_step: int | None = None
        self._step_seconds = 0.0
        self._restarts = 0

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Update the values after an event of a worker, and send them."""
        match event["kind"]:
            case "train":
                self._send(self._after_step(event))
            case "restart":
                self._restarts += 1
                self._send({"restarts_total": float(self._restarts)})

    def _after_step(self, event: Mapping[str, Any]) -> dict[str, float]:
        left = event["total_steps"] - event["step"]
        if left > 0:
            self._step_seconds = event["seconds_left"] / left
        if self._first_step is None:
            # The first message comes a moment after the first step. Steps before it are few.
            self._first_step = event["step"]
        kept = (event["step"] - self._first_step) * self._step_seconds
        elapsed = max(1e-9, self._clock() - self._started)
        names = ("events_per_second", "step", "total_steps", "loss", "workers")
        values = {name: float(event[name]) for name in names if name in event}
        return {**values, "restarts_total": float(self._restarts), "goodput": max(0.0, min(1.0, kept / elapsed))}
