"""Times of events as an encoder can take them: vectors of what a clock shows, and seconds since a history began.

Everything about event i follows from the times of events up to i: nothing later is looked at.

Shapes: N input events, B histories, D model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.features.config import NUM_TIME_ROWS, TimePart

GAPS_PER_DOUBLING, LONGEST_GAP = 2, NUM_TIME_ROWS["gap"] - 2
INIT_STD = 0.02


@dataclass(frozen=True)
class Clock:
    """How times of the logs are read. ticks_per_second: of their unit; parts: what of them the model has vectors of.

    tells_request: whether encoders are told when a recommendation is asked for.
    """

    ticks_per_second: int
    parts: tuple[TimePart, ...] = ()
    tells_request: bool = False


def seconds_since_start(clock: Clock, times: np.ndarray, own_times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(N,) int64 whole seconds from the first event of each history to `times` (N,). own_times: (N,), of the input events.

    Whole numbers, so that their differences are exact.
    """
    lengths = np.diff(offsets)
    first = np.repeat(own_times[offsets[:-1][lengths > 0]], lengths[lengths > 0])
    seconds: np.ndarray = (times - first) // clock.ticks_per_second
    return seconds


def time_rows(clock: Clock, times: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """By part of the time, which vector each event ((N,) int64 times in the unit of the logs) has: (N,) int64."""
    is_first = np.zeros(times.size, np.bool_)
    is_first[offsets[:-1][np.diff(offsets) > 0]] = True
    return time_rows_after(clock, times, np.roll(times, 1), is_first)


def time_rows_after(
    clock: Clock, times: np.ndarray, previous: np.ndarray, is_first: np.ndarray
) -> dict[str, np.ndarray]:
    """The same of anything at `times` ((n,) int64), told what came before: the event at `previous`, or nothing where `is_first`."""
    found: dict[str, np.ndarray] = {}
    for part in clock.parts:
        match part:
            case "gap":
                found[part] = _gap_rows(clock, times, previous, is_first)
            case "hour":
                found[part] = times // (3600 * clock.ticks_per_second) % 24
            case "weekday":
                # 1970 began on a Thursday; Monday is 0.
                found[part] = (times // (86400 * clock.ticks_per_second) + 3) % 7
    return found


def _gap_rows(clock: Clock, times: np.ndarray, previous: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    gaps = np.where(
        is_first, 0, times - previous
    )  # across histories there is no gap, and the difference may be negative
    buckets = np.floor(GAPS_PER_DOUBLING * np.log2(1 + gaps // clock.ticks_per_second)).astype(np.int64)
    rows: np.ndarray = 1 + np.minimum(buckets, LONGEST_GAP)
    rows[is_first] = 0
    return rows


class TimeVectors(nn.Module):
    """A learned vector for every row of each part of the time. They are few, so they are dense weights."""

    def __init__(self, width: int, parts: tuple[TimePart, ...]) -> None:
        super().__init__()
        self.parts = parts
        self.vectors = nn.ModuleDict({part: nn.Embedding(NUM_TIME_ROWS[part], width) for part in parts})

    def forward(self, x_ND: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """The vectors of each event's time added to (N, D). rows: what `time_rows` gave."""
        for part in self.parts:
            x_ND = x_ND + self.vectors[part](rows[part])
        return x_ND

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw all vectors from `generator` (CPU), in a fixed order."""
        for part in self.parts:
            weight = next(self.vectors[part].parameters())
            weight.copy_(torch.empty(weight.shape).normal_(0.0, INIT_STD, generator=generator))
