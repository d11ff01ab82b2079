"""Times of events as inputs of an encoder: vectors of clock readings, and seconds since the start of a history.

Everything about event i follows from the times of events up to i.

Shapes: N input events, B histories, D model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.features.config import NUM_TIME_ROWS, TimePart

GAPS_PER_DOUBLING = 2
LONGEST_GAP = NUM_TIME_ROWS["gap"] - 2
INIT_STD = 0.02


@dataclass(frozen=True)
class Clock:
    """The unit of the times in the logs, and their use by the model."""

    ticks_per_second: int  # of the unit of the logs
    parts: tuple[TimePart, ...] = ()  # parts of the time with learned vectors
    has_request_time: bool = False  # encoders receive the time of the request


@dataclass(frozen=True)
class Earlier:
    """The event before the first one of each of B histories, of which a batch holds only the most recent part."""

    exists: np.ndarray  # (B,) bool
    times: np.ndarray  # (B,) int64, in the unit of the logs; 0 without an event

    def sliced(self, start: int, stop: int) -> "Earlier":
        """Return the entries of the histories start .. stop - 1."""
        return Earlier(self.exists[start:stop], self.times[start:stop])


def seconds_since_start(clock: Clock, times: np.ndarray, own_times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return whole seconds from the first event of each history to `times`, (N,) int64. Differences of whole numbers are exact.

    Args:
        clock: the unit of the times.
        times: (N,) int64.
        own_times: of the input events, (N,) int64.
        offsets: of the histories, (B + 1,).
    """
    lengths = np.diff(offsets)
    first = np.repeat(own_times[offsets[:-1][lengths > 0]], lengths[lengths > 0])
    # Each time is rounded by itself, so that differences do not depend on where a history begins.
    seconds: np.ndarray = times // clock.ticks_per_second - first // clock.ticks_per_second
    return seconds


def time_rows(
    clock: Clock, times: np.ndarray, offsets: np.ndarray, earlier: Earlier | None = None
) -> dict[str, np.ndarray]:
    """Return the row of the time vectors of each event, (N,) int64 by part of the time.

    Args:
        clock: the unit of the times, and the parts.
        times: (N,) int64, in the unit of the logs.
        offsets: of the histories, (B + 1,).
        earlier: the events before the first of each history, None if there are none.
    """
    own = np.diff(offsets) > 0
    first = offsets[:-1][own]
    is_first = np.zeros(times.size, np.bool_)
    previous = np.roll(times, 1)
    is_first[first] = True if earlier is None else ~earlier.exists[own]
    if earlier is not None:
        previous[first] = earlier.times[own]
    return time_rows_after(clock, times, previous, is_first)


def time_rows_after(
    clock: Clock, times: np.ndarray, previous: np.ndarray, is_first: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the row of the time vectors at `times` ((n,) int64), by part of the time.

    previous: the time of the event before, ignored where `is_first`.
    """
    rows: dict[str, np.ndarray] = {}
    for part in clock.parts:
        match part:
            case "gap":
                rows[part] = _gap_rows(clock, times, previous, is_first)
            case "hour":
                rows[part] = times // (3600 * clock.ticks_per_second) % 24
            case "weekday":
                # 1970 began on a Thursday; Monday is 0.
                rows[part] = (times // (86400 * clock.ticks_per_second) + 3) % 7
    return rows


def _gap_rows(clock: Clock, times: np.ndarray, previous: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    gaps = np.where(is_first, 0, times - previous)  # gaps across histories are meaningless and can be negative
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
        """Add the vectors of each event's time to x (N, D). `rows`: the result of `time_rows`."""
        for part in self.parts:
            x_ND = x_ND + self.vectors[part](rows[part])
        return x_ND

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw all vectors from `generator` (CPU), in a fixed order."""
        for part in self.parts:
            weight = next(self.vectors[part].parameters())
            weight.copy_(torch.empty(weight.shape).normal_(0.0, INIT_STD, generator=generator))
