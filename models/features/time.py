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


@dataclass(frozen=True)
class Earlier:
    """The event before the first one of each of B histories, of which a batch has only the most recent part."""

    exists: np.ndarray  # (B,) bool
    times: np.ndarray  # (B,) int64, in the unit of the logs; 0 where there is none

    def sliced(self, start: int, stop: int) -> "Earlier":
        """Those of the histories start .. stop - 1."""
        return Earlier(self.exists[start:stop], self.times[start:stop])


def seconds_since_start(clock: Clock, times: np.ndarray, own_times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(N,) int64 whole seconds from the first event of each history to `times` (N,). own_times: (N,), of the input events.

    Whole numbers, so that their differences are exact.
    """
    lengths = np.diff(offsets)
    first = np.repeat(own_times[offsets[:-1][lengths > 0]], lengths[lengths > 0])
    # Each is rounded by itself: differences are then the same wherever a history begins.
    seconds: np.ndarray = times // clock.ticks_per_second - first // clock.ticks_per_second
    return seconds


def time_rows(
    clock: Clock, times: np.ndarray, offsets: np.ndarray, earlier: Earlier | None = None
) -> dict[str, np.ndarray]:
    """Return by part of the time which vector each event has: (N,) int64.

    times: (N,) int64, in the unit of the logs; earlier: the events before the first of each history, none if there are none.
    """
    own = np.diff(offsets) > 0
    first, is_first, previous = offsets[:-1][own], np.zeros(times.size, np.bool_), np.roll(times, 1)
    is_first[first] = True if earlier is None else ~earlier.exists[own]
    if earlier is not None:
        previous[first] = earlier.times[own]
    return time_rows_after(clock, times, previous, is_first)


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
