"""Intervals between checkpoints and goodput, against published formulas, limits and random failures."""

import numpy as np
import pytest

from cluster.plan.simulation.failures import daly_seconds, goodput_of, young_seconds

HOUR = 3600.0


def test_young_and_daly_at_known_values() -> None:
    # A stall of 5 minutes and a failure a day: sqrt(2 x 300 x 86400) = 7,200 s.
    assert young_seconds(300.0, 24 * HOUR) == pytest.approx(7200.0)
    root = np.sqrt(300.0 / (2 * 24 * HOUR))
    assert daly_seconds(300.0, 24 * HOUR) == pytest.approx(7200.0 * (1 + root / 3 + root**2 / 9) - 300.0)
    assert daly_seconds(3.0 * HOUR, HOUR) == HOUR


@pytest.mark.parametrize("mtbf", [HOUR, 24 * HOUR, 1000 * HOUR])
@pytest.mark.parametrize("stall", [0.5, 30.0, 300.0])
def test_daly_is_the_best_interval(stall: float, mtbf: float) -> None:
    intervals = np.geomspace(stall, 10 * mtbf, 20_000)
    goodput = [goodput_of(interval, stall, 60.0, mtbf) for interval in intervals]
    best = goodput_of(daly_seconds(stall, mtbf), stall, 60.0, mtbf)
    assert best == pytest.approx(max(goodput), rel=1e-3)


def test_goodput_equals_that_of_random_failures() -> None:
    interval, stall, recovery, mtbf = 600.0, 20.0, 90.0, 3000.0
    rng = np.random.default_rng(3)
    elapsed = 0.0
    for _ in range(20_000):
        while (until := rng.exponential(mtbf)) < interval + stall:
            elapsed += until
            # A recovery that fails begins again.
            while (again := rng.exponential(mtbf)) < recovery:
                elapsed += again
            elapsed += recovery
        elapsed += interval + stall
    assert goodput_of(interval, stall, recovery, mtbf) == pytest.approx(20_000 * interval / elapsed, rel=0.015)


def test_limits_of_goodput() -> None:
    assert goodput_of(600.0, 0.0, 0.0, 1e15) == pytest.approx(1.0)
    assert goodput_of(600.0, 60.0, 100.0, 1e15) == pytest.approx(600.0 / 660.0)
    assert goodput_of(1e9, 1.0, 1.0, 1.0) == 0.0


def test_goodput_falls_with_failures_recovery_and_stall() -> None:
    by_mtbf = [goodput_of(600.0, 10.0, 60.0, mtbf) for mtbf in (1e6, 1e5, 1e4, 1e3)]
    assert by_mtbf == sorted(by_mtbf, reverse=True)
    assert goodput_of(600.0, 10.0, 600.0, 1e4) < goodput_of(600.0, 10.0, 60.0, 1e4)
    assert goodput_of(600.0, 60.0, 60.0, 1e4) < goodput_of(600.0, 10.0, 60.0, 1e4)
