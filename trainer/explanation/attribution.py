"""Attributions: a number for each event of each explained question. The larger it is, the more the event raises the score.

Shapes: B questions, N events of all of them, H maps of attention.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class MapName(NamedTuple):
    """One map of attention weights."""

    layer: str
    """"block 1" and so on, "pooling", "candidate" (attention of a ranker's candidate), or "mean"."""
    head: int
    """Number of the head, from 0."""
    channel: str
    """"weights"; "position" or "time" for a bias that is a map of its own (FuXi-alpha)."""


@dataclass(frozen=True)
class Attribution:
    """Values of one method for B questions."""

    method: str
    """Name of the method."""
    values: np.ndarray
    """(N,) float32, one per event."""
    offsets: np.ndarray
    """(B + 1,) int64: question b owns values[offsets[b]:offsets[b + 1]]."""
    scores: np.ndarray
    """(B,) float32, scores of the targets with all events."""
    delta: np.ndarray | None = None
    """(B,) float32, sum of the values minus the difference of the scores of input and baseline; None if not defined."""
    baseline_scores: np.ndarray | None = None
    """(B,) float32, scores of the baseline, averaged over several; None for a method without baseline."""
    maps: tuple[MapName, ...] = ()
    """For attention, the maps of the columns of `detail`."""
    detail: np.ndarray | None = None
    """(N, H) float32, what the last event, or the candidate, gives each event in each map of attention."""

    @property
    def size(self) -> int:
        """Number of questions."""
        return self.offsets.size - 1

    def of(self, number: int) -> np.ndarray:
        """Return the values of one question, the oldest event first."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]
