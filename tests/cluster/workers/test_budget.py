"""Budgets of failures: within an hour, in a row without progress, and the wait before a restart."""

from cluster.config.run_config import RecoveryConfig
from cluster.workers.budget import Budget


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_failures_within_an_hour_are_limited_and_older_ones_forgotten() -> None:
    clock = Clock()
    budget = Budget(RecoveryConfig(failures_per_hour=2), clock)
    assert budget.count("failure", 1) is None
    clock.now = 1800.0
    assert budget.count("failure", 2) is None
    clock.now = 3599.0
    assert "3 failures within an hour" in (budget.count("failure", 3) or "")
    clock.now = 7300.0
    assert budget.count("failure", 4) is None


def test_failures_without_progress_end_the_run_and_progress_allows_more() -> None:
    budget = Budget(RecoveryConfig(failures_per_hour=100, same_step_failures=2), Clock())
    assert [budget.count("failure", 5) is None for _ in range(3)] == [True, True, False]
    budget = Budget(RecoveryConfig(failures_per_hour=100, same_step_failures=2), Clock())
    assert [budget.count("failure", step) is None for step in (5, 5, 6, 6, 6)] == [True, True, True, True, False]


def test_without_recovery_the_first_failure_ends_the_run() -> None:
    assert "failures_per_hour is 0" in (Budget(RecoveryConfig(failures_per_hour=0), Clock()).count("failure", 0) or "")


def test_preemptions_have_a_budget_of_their_own() -> None:
    budget = Budget(RecoveryConfig(failures_per_hour=0, preemptions_per_hour=1), Clock())
    assert budget.count("preemption", 0) is None
    assert "2 preemptions" in (budget.count("preemption", 0) or "")
    unlimited = Budget(RecoveryConfig(failures_per_hour=0), Clock())
    assert all(unlimited.count("preemption", 0) is None for _ in range(100))


def test_the_wait_doubles_after_the_first_failure_of_an_hour() -> None:
    budget = Budget(RecoveryConfig(failures_per_hour=100, backoff_seconds=2.0), Clock())
    waits = []
    for step in range(7):
        budget.count("failure", step)
        waits.append(budget.wait("failure"))
    assert waits == [0.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
