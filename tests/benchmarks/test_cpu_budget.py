"""The number of steps that a budget of processor time allows."""

from benchmarks.cpu_budget import PROBE_STEPS, PROBE_WARM_UP, SHARE, _steps_within
from benchmarks.step_times import RankTimes


def test_the_steps_of_a_budget_leave_time_for_the_start_and_the_end() -> None:
    """Two seconds before the first step, slow first steps, half a second each, three seconds at the end."""
    starts = [12.0 + 0.5 * step + (1.0 if step >= PROBE_WARM_UP else 0.0) for step in range(PROBE_STEPS)]
    probe = RankTimes(10.0, starts, starts[-1] + 0.5 + 3.0)
    steps = _steps_within(600.0, probe)
    assert steps == int((SHARE * 600.0 - 2.0 - 1.0 - 3.0) / 0.5)
