"""Ratios that hold on a noisy machine: the two sides take turns, and each turn gives one ratio."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.memory import peak_memory


@dataclass(frozen=True)
class Comparison:
    """ours, ceiling: work per second of each turn; ratio: ours / ceiling turn by turn.

    ours_bytes, ceiling_bytes: the most memory that was held beyond what was held at the start, in the warm-up.
    """

    name: str
    unit: str
    ours: tuple[float, ...]
    ceiling: tuple[float, ...]
    ceiling_name: str
    ours_bytes: int = 0
    ceiling_bytes: int = 0

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(a / b for a, b in zip(self.ours, self.ceiling, strict=True))

    def row(self) -> list[str]:
        median = statistics.median(self.ratios)
        return [
            self.name,
            f"{statistics.median(self.ours):,.0f} {self.unit}",
            f"{statistics.median(self.ceiling):,.0f} {self.unit}",
            f"{median:.2f}",
            f"{min(self.ratios):.2f} - {max(self.ratios):.2f}",
            f"{self.ours_bytes / 1e9:.2f} / {self.ceiling_bytes / 1e9:.2f} GB",
            self.ceiling_name,
        ]

    def values(self) -> dict[str, object]:
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "ceiling": self.ceiling,
            "ceiling_name": self.ceiling_name,
            "ours_peak_bytes": self.ours_bytes,
            "ceiling_peak_bytes": self.ceiling_bytes,
            "ratio_median": statistics.median(self.ratios),
            "ratio_min": min(self.ratios),
            "ratio_max": max(self.ratios),
        }


def take_turns(
    name: str,
    unit: str,
    amount: float,
    ours: Callable[[], object],
    ceiling: Callable[[], object],
    ceiling_name: str,
    turns: int = 5,
    ceiling_amount: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time both, one after the other, `turns` times after a warm-up, in which memory is measured.

    `amount`: work done by one call, in the unit's noun; `ceiling_amount`: by one of the ceiling, where that is another. `clock`:
    time.process_time for work of one thread, which a busy machine does not falsify.
    """
    other = amount if ceiling_amount is None else ceiling_amount
    ours_bytes, ceiling_bytes = _peak(ours), _peak(ceiling)
    pairs = [(amount / _seconds(ours, clock), other / _seconds(ceiling, clock)) for _ in range(turns)]
    return Comparison(
        name, unit, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), ceiling_name, ours_bytes, ceiling_bytes
    )


def _peak(work: Callable[[], object]) -> int:
    with peak_memory() as peak:
        work()
        return peak()


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started
