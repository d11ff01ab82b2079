"""How long the parts of a step take on this rank, without a synchronisation of their own."""

import time
from dataclasses import dataclass, field
from itertools import pairwise

import torch

PARTS = ("look_up", "dense", "agree", "update")
Mark = float | torch.cuda.Event


@dataclass
class StepClock:
    """Owned by the step, which marks the ends of its parts; whoever runs it collects.

    look_up: rows of tables fetched; dense: everything from there to its gradients, on this rank alone; agree: waiting for the
    other ranks; update: gradients into the tables, and the dense optimizer. totals: seconds by part over num_steps.
    """

    device: torch.device
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    num_steps: int = 0
    _marks: list[Mark] = field(default_factory=list)
    _before: list[Mark] = field(default_factory=list)

    def start(self) -> None:
        """The beginning of a step."""
        self._before, self._marks = self._marks, []
        self.mark()

    def mark(self) -> None:
        """The end of the next part."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def collect(self) -> None:
        """Add the step before this one, whose work a GPU has done by now: this one's ranks have agreed since."""
        if len(self._before) == len(PARTS) + 1:
            self.num_steps += 1
            for part, (begin, end) in zip(PARTS, pairwise(self._before), strict=True):
                self.totals[part] += _seconds(begin, end)

    def means(self) -> dict[str, float]:
        """Seconds of a step by part, on average; zeros before there is a whole step."""
        return {part: total / max(1, self.num_steps) for part, total in self.totals.items()}


def _seconds(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3
