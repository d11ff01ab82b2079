"""What a plan will cost: memory and time of every table on every rank, and what follows for a step. Imports no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """All arrays are (T, W) float64, by table (in the order of `tables`) and rank, for one step; 0 where a rank has no shard.

    memory_bytes: in device memory, weights, optimizer state and buffers; host_memory_bytes: outside of it.
    input_seconds: ids sent to where rows lie; lookup_seconds: rows read; output_seconds: rows sent back;
    gradient_seconds: their gradients sent the other way; update_seconds: rows written by the optimizer.
    sent_bytes: bytes that the rank sends in all of these.
    """

    tables: tuple[str, ...]
    memory_bytes: Float64
    host_memory_bytes: Float64
    input_seconds: Float64
    lookup_seconds: Float64
    output_seconds: Float64
    gradient_seconds: Float64
    update_seconds: Float64
    sent_bytes: Float64

    @property
    def phases(self) -> dict[str, Float64]:
        """Seconds by phase, in the order of a step. Every phase ends when its slowest rank does."""
        return {
            "input": self.input_seconds,
            "lookup": self.lookup_seconds,
            "output": self.output_seconds,
            "gradient": self.gradient_seconds,
            "update": self.update_seconds,
        }

    @property
    def rank_seconds(self) -> Float64:
        """(W,): what each rank spends on tables in a step, waiting aside."""
        total: Float64 = sum(self.phases.values(), np.zeros_like(self.input_seconds)).sum(axis=0)
        return total

    @property
    def step_seconds(self) -> float:
        """The time that tables add to a step, since ranks wait for each other after every phase."""
        return float(sum(phase.sum(axis=0).max(initial=0.0) for phase in self.phases.values()))

    @property
    def imbalance(self) -> float:
        """Seconds of the busiest rank over their mean; 1.0 where all have equally much to do."""
        seconds = self.rank_seconds
        return float(seconds.max() / seconds.mean()) if seconds.any() else 1.0

    @property
    def bottleneck(self) -> tuple[str, int]:
        """The dearest phase, and the rank that is slowest in it."""
        name, phase = max(self.phases.items(), key=lambda item: float(item[1].sum(axis=0).max(initial=0.0)))
        return name, int(phase.sum(axis=0).argmax())
