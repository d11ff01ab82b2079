"""The predicted cost of a plan: memory and time of every table on every rank, and of a step. Imports no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Predicted costs of one step.

    All arrays are (T, W) float64, by table (in the order of `tables`) and rank; 0 without a shard.
    """

    tables: tuple[str, ...]
    memory_bytes: Float64  # in device memory: weights, optimizer state and buffers
    host_memory_bytes: Float64  # outside of device memory
    input_seconds: Float64  # ids sent to the owners of rows
    lookup_seconds: Float64  # rows read
    output_seconds: Float64  # rows sent back
    gradient_seconds: Float64  # gradients sent to the owners
    update_seconds: Float64  # rows written by the optimizer
    sent_bytes: Float64  # sent by the rank in all phases

    @property
    def phases(self) -> dict[str, Float64]:
        """Return seconds by phase, in the order of a step. A phase ends when its slowest rank does."""
        return {
            "input": self.input_seconds,
            "lookup": self.lookup_seconds,
            "output": self.output_seconds,
            "gradient": self.gradient_seconds,
            "update": self.update_seconds,
        }

    @property
    def rank_seconds(self) -> Float64:
        """Return the seconds of each rank for tables in a step, without waiting, (W,)."""
        total: Float64 = sum(self.phases.values(), np.zeros_like(self.input_seconds)).sum(axis=0)
        return total

    @property
    def step_seconds(self) -> float:
        """Return the time that tables add to a step. Ranks wait for each other after every phase."""
        return float(sum(phase.sum(axis=0).max(initial=0.0) for phase in self.phases.values()))

    @property
    def imbalance(self) -> float:
        """Return the seconds of the busiest rank divided by the mean; 1.0 if all ranks have equal work."""
        seconds = self.rank_seconds
        return float(seconds.max() / seconds.mean()) if seconds.any() else 1.0

    @property
    def bottleneck(self) -> tuple[str, int]:
        """Return the most expensive phase and its slowest rank."""
        name, phase = max(self.phases.items(), key=lambda item: float(item[1].sum(axis=0).max(initial=0.0)))
        return name, int(phase.sum(axis=0).argmax())
