"""Time per part of a step on this rank, measured without extra synchronisation."""

import time
from dataclasses import dataclass, field
from itertools import pairwise

import torch

PARTS = ("look_up", "dense", "agree", "update")
Mark = float | torch.cuda.Event


@dataclass
class StepClock:
    """The clock of a training. The step marks the end of each part; the loop collects.

    Parts: look_up fetches rows of tables, and prepares the next step if its ids are sent early. dense is everything from there to
    the gradients, on this rank alone. agree waits for the other ranks. update brings gradients into the tables and runs the dense
    optimizer.
    """

    device: torch.device
    """The device of the model; on a GPU, events are recorded instead of times."""
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """Seconds by part over num_steps."""
    data_seconds: float = 0.0
    """Seconds of waiting for data, over all steps."""
    num_steps: int = 0
    """Steps collected."""
    own_seconds: float = 0.0
    """Time of the last collected step that this rank worked alone: the wait for its data, and the dense part."""
    _data: float = 0.0
    _steps: list[tuple[float, list[Mark]]] = field(default_factory=list)  # not collected: wait for data, and marks

    def waited(self, seconds: float) -> None:
        """Note for how long the next step waited for its data."""
        self._data = seconds
        self.data_seconds += seconds

    def start(self) -> None:
        """Mark the beginning of a step."""
        self._steps.append((self._data, []))
        self.mark()

    def mark(self) -> None:
        """Mark the end of the next part."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._steps[-1][1].append(event)
        else:
            self._steps[-1][1].append(time.perf_counter())

    def collect(self, num_later: int = 0) -> None:
        """Add the steps before the one of which the ranks know the result. A GPU has finished their work by now.

        num_later: Steps that have started after that one.
        """
        while len(self._steps) > num_later + 1:
            data, marks = self._steps.pop(0)
            if len(marks) < len(PARTS) + 1:
                continue
            self.num_steps += 1
            seconds = {part: _seconds(begin, end) for part, (begin, end) in zip(PARTS, pairwise(marks), strict=True)}
            for part, one in seconds.items():
                self.totals[part] += one
            self.own_seconds = data + seconds["dense"]

    def means(self) -> dict[str, float]:
        """Return the mean seconds of a step by part; zeros before there is a whole step."""
        return {part: total / max(1, self.num_steps) for part, total in self.totals.items()}


def _seconds(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3
