"""A rank that is much slower than the others is named; one that only has more to do now and then is not."""

from collections.abc import Sequence

import pytest

from trainer.loop.stragglers import MIN_SECONDS, MIN_STEPS, Straggler, Stragglers


def named_in(seconds: Sequence[float], step_seconds: float, num_steps: int = 100) -> list[Straggler]:
    """Return what is named in a number of equal steps."""
    stragglers = Stragglers()
    named = (stragglers.add(seconds, [10.0] * len(seconds), number * step_seconds) for number in range(num_steps))
    return [one for one in named if one is not None]


def test_a_rank_three_times_as_slow_is_named_with_its_share_of_the_step() -> None:
    first = named_in([0.1, 0.3, 0.1, 0.1], 0.4)[0]
    assert (first.rank, first.factor, first.share) == (1, pytest.approx(3.0), pytest.approx(0.5))
    assert first.share_of_events == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("seconds", "step_seconds"),
    [
        ([0.1, 0.19], 0.4),  # not slow enough
        ([0.1, 0.3], 2.0),  # the step takes its time for other reasons
        ([0.3], 0.4),  # nobody waits
    ],
)
def test_nobody_is_named_without_a_reason(seconds: list[float], step_seconds: float) -> None:
    assert named_in(seconds, step_seconds) == []


def test_a_window_has_many_steps_and_some_seconds() -> None:
    assert named_in([0.1, 0.9], 1.0, MIN_STEPS) == []
    assert len(named_in([0.1, 0.9], 1.0, MIN_STEPS + 1)) == 1
    assert named_in([0.01, 0.09], 0.1, int(MIN_SECONDS / 0.1)) == []


def test_time_that_is_not_of_steps_does_not_count() -> None:
    stragglers = Stragglers()
    stragglers.add([0.1, 0.3], [1.0, 1.0], 0.0)
    stragglers.pause(96.0)  # an evaluation
    named = [stragglers.add([0.1, 0.3], [1.0, 1.0], 96.0 + 0.4 * number) for number in range(1, 21)]
    shares = [one.share for one in named if one is not None]
    assert shares == [pytest.approx(0.5)]
