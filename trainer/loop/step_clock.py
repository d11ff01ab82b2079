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

    Parts: look_up fetches rows of tables. dense is everything from there to the gradients, on this rank alone. agree waits for the
    other ranks. update brings gradients into the tables and runs the dense optimizer.
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
    _data_before: float = 0.0
    _marks: list[Mark] = field(default_factory=list)
    _before: list[Mark] = field(default_factory=list)

    def waited(self, seconds: float) -> None:
        """Note for how long the next step waited for its data."""
        self._data_before, self._data = self._data, seconds
        self.data_seconds += seconds

    def start(self) -> None:
        """Mark the beginning of a step."""
        self._before = self._marks
        self._marks = []
        self.mark()

    def mark(self) -> None:
        """Mark the end of the next part."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def collect(self) -> None:
        """Add the previous step. A GPU has finished its work by now, because the ranks have agreed on the present step since."""
        if len(self._before) == len(PARTS) + 1:
            self.num_steps += 1
            seconds = {
                part: _seconds(begin, end) for part, (begin, end) in zip(PARTS, pairwise(self._before), strict=True)
            }
            for part, one in seconds.items():
                self.totals[part] += one
            self.own_seconds = self._data_before + seconds["dense"]

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
