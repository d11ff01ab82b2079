"""Detection of a rank that is much slower than the others, from times that the ranks exchange with every step anyway.

All ranks wait for the slowest one, so the time of a step does not tell which one that is. Each rank measures the time that it works
alone: the wait for its data, and the forward and backward pass of the dense part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

MIN_STEPS = 20  # in a window, so that a single pause names nobody
MIN_SECONDS = 5.0  # likewise
MIN_FACTOR = 2.0  # times as slow as the median of the other ranks
MIN_SHARE = 0.2  # of the time of a step that is lost by waiting


@dataclass(frozen=True)
class Straggler:
    """A rank that is much slower than the others."""

    rank: int
    """The rank."""
    factor: float
    """Its own time over the median of the others."""
    share: float
    """The share of the time of a step for which the others wait for it."""
    share_of_events: float
    """Its share of the events, which explains a part of the time."""


@dataclass
class Stragglers:
    """Looks for a straggler in one window of steps after another."""

    _seconds: list[float] = field(default_factory=list)
    _events: list[float] = field(default_factory=list)
    _num_steps: int = 0
    _started: float | None = None
    _paused: float = 0.0

    def add(self, seconds: Sequence[float], events: Sequence[float], now: float) -> Straggler | None:
        """Add a step. Return the straggler of the window that ends with it, or None.

        Args:
            seconds: (world size,) own time of each rank.
            events: (world size,) events of each rank.
            now: seconds of a monotonic clock.
        """
        if len(seconds) < 2:
            return None
        if self._started is None:
            self._begin(now, len(seconds))
            return None
        self._seconds = [total + new for total, new in zip(self._seconds, seconds, strict=True)]
        self._events = [total + new for total, new in zip(self._events, events, strict=True)]
        self._num_steps += 1
        elapsed = now - self._started - self._paused
        if self._num_steps < MIN_STEPS or elapsed < MIN_SECONDS:
            return None
        straggler = _slowest(self._seconds, self._events, elapsed)
        self._begin(now, len(seconds))
        return straggler

    def pause(self, seconds: float) -> None:
        """Subtract time that was not spent on steps."""
        self._paused += seconds

    def _begin(self, now: float, world_size: int) -> None:
        self._seconds = [0.0] * world_size
        self._events = [0.0] * world_size
        self._num_steps = 0
        self._started = now
        self._paused = 0.0


def _slowest(seconds: Sequence[float], events: Sequence[float], elapsed: float) -> Straggler | None:
    """Return the slowest rank if the others lose much time by waiting for it.

    Args:
        seconds: (world size,) own time of each rank in the window.
        events: (world size,) events of each rank.
        elapsed: seconds of the window.
    """
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    others = median([*seconds[:rank], *seconds[rank + 1 :]])
    share = min(1.0, (seconds[rank] - others) / elapsed)
    if share < MIN_SHARE or seconds[rank] < MIN_FACTOR * others:
        return None
    factor = seconds[rank] / max(others, 1e-9)
    return Straggler(rank, factor, share, events[rank] / max(1.0, sum(events)))


def straggler_text(event: dict[str, Any]) -> str:
    """Return which rank is slow, on which machine, and what it costs, for people.

    event: the fields of a Straggler, and the host if it is known.
    """
    host = f" on {event['host']}" if "host" in event else ""
    return (
        f"rank {event['rank']}{host} is slow: it has {event['share_of_events']:.0%} of the events and works "
        f"{event['factor']:.1f} times as long as the other ranks (median); they wait for it {event['share']:.0%} of a step"
    )
