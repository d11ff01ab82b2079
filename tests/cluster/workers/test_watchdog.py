"""Who is to blame for a hang: the rank without a sign of life, or the one that is furthest behind."""

import pytest

from cluster.config.run_config import RecoveryConfig
from cluster.workers.mailbox import Beat, Place
from cluster.workers.watchdog import LONGEST_GAP, Watchdog

HERE = Place("here", "node", 1, 0.0)
LIMITS = RecoveryConfig(
    heartbeat_seconds=10.0,
    start_seconds=100.0,
    first_step_seconds=60.0,
    step_seconds=30.0,
    evaluation_seconds=200.0,
    checkpoint_seconds=50.0,
)


def looked(beats: dict[int, Beat], first: dict[int, Beat] | None = None) -> dict[int, str]:
    """Return whom a watchdog blames at its second look; at the first it knows nothing."""
    watchdog = Watchdog(LIMITS)
    assert watchdog.look(first or beats, 0.0) == {}
    if first is not None:
        assert watchdog.look(first, 0.5) == {}
    return watchdog.look(beats, 1.0)


def test_a_rank_without_a_sign_of_life_is_named_with_its_phase() -> None:
    beats = {0: Beat(HERE, "step", 7, 5.0, 0.3), 1: Beat(HERE, "step", 7, 5.0, 10.5)}
    assert looked(beats) == {1: "stopped in step 8, without a sign of life for 10 s"}
    assert looked({0: beats[0], 1: Beat(HERE, "step", 7, 5.0, 9.5)}) == {}


def test_the_rank_that_is_furthest_behind_is_named_if_all_live() -> None:
    before = {0: Beat(HERE, "step", 1), 1: Beat(HERE, "step", 1)}
    waits = Beat(HERE, "step", 7, 31.0, 0.5)
    blamed = looked({0: waits, 1: Beat(HERE, "data", 7, 31.0, 0.5)}, before)
    assert blamed == {1: "made no progress while it read the data of step 8 for 32 s (cluster.recovery.step_seconds)"}
    assert set(looked({0: waits, 1: Beat(HERE, "evaluation", 7, 201.0, 0.0)}, before)) == {1}
    assert set(looked({0: waits, 1: waits}, before)) == {0, 1}


@pytest.mark.parametrize(
    ("phase", "seconds", "setting"),
    [
        ("start", 100.0, "start_seconds"),
        ("step", 60.0, "first_step_seconds"),
        ("evaluation", 200.0, "evaluation_seconds"),
        ("checkpoint", 50.0, "checkpoint_seconds"),
    ],
)
def test_each_phase_has_a_budget(phase: str, seconds: float, setting: str) -> None:
    assert looked({0: Beat(HERE, phase, 3, seconds - 1.0)}) == {}
    assert setting in looked({0: Beat(HERE, phase, 3, seconds + 1.0)})[0]


def test_nobody_is_blamed_if_the_driver_itself_was_stopped() -> None:
    watchdog = Watchdog(LIMITS)
    silent = {0: Beat(HERE, "step", 7, 5.0, 100.0)}
    assert watchdog.look(silent, 0.0) == {}
    assert watchdog.look(silent, LONGEST_GAP + 1.0) == {}
    assert set(watchdog.look(silent, LONGEST_GAP + 2.0)) == {0}
