"""What is made of times, against one event at a time, and against Python's own calendar."""

import math
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from models.features.config import NUM_TIME_ROWS
from models.features.time import LONGEST_GAP, Clock, Earlier, TimeVectors, seconds_since_start, time_rows

OFFSETS = np.asarray([0, 0, 4, 5, 5, 9, 9])  # with empty histories, the last among them
SECONDS = np.asarray([1_700_000_000, 1_700_000_000, 1_700_000_001, 1_700_090_000, 5, -90_000, -3, 0, 2**33])
UNITS = [1, 1_000, 1_000_000]


def gap_row(seconds: int) -> int:
    """Return the bucket by the formula; its bounds are checked by whole powers."""
    k = min(LONGEST_GAP, math.floor(2 * math.log2(1 + seconds)))
    assert 2**k <= (1 + seconds) ** 2
    assert (1 + seconds) ** 2 < 2 ** (k + 1) or k == LONGEST_GAP
    return 1 + k


@pytest.mark.parametrize("ticks", UNITS)
def test_rows_equal_those_of_one_event_at_a_time(ticks: int) -> None:
    clock = Clock(ticks, ("gap", "hour", "weekday"))
    rows = time_rows(clock, SECONDS * ticks + (ticks // 2), OFFSETS)
    assert list(rows) == ["gap", "hour", "weekday"]
    starts = {0, 4, 5}
    expected = [0 if n in starts else gap_row(int(SECONDS[n] - SECONDS[n - 1])) for n in range(SECONDS.size)]
    assert rows["gap"].tolist() == expected
    moments = [datetime.fromtimestamp(int(second), UTC) for second in SECONDS]
    assert rows["hour"].tolist() == [moment.hour for moment in moments]
    assert rows["weekday"].tolist() == [moment.weekday() for moment in moments]
    for part, value in rows.items():
        assert value.dtype == np.int64
        assert value.min() >= 0
        assert value.max() < NUM_TIME_ROWS[part]  # type: ignore[index]


def test_the_longest_gap_has_a_row() -> None:
    rows = time_rows(Clock(1, ("gap",)), np.asarray([-(2**40), 2**40]), np.asarray([0, 2]))
    assert rows["gap"].tolist() == [0, NUM_TIME_ROWS["gap"] - 1]


@pytest.mark.parametrize("ticks", UNITS)
def test_seconds_count_from_the_first_event_of_each_history(ticks: int) -> None:
    clock, times = Clock(ticks), SECONDS * ticks
    actual = seconds_since_start(clock, times, times, OFFSETS)
    assert actual.tolist() == [0, 0, 1, 90_000, 0, 0, 89_997, 90_000, 2**33 + 90_000]
    asked = seconds_since_start(clock, times + 7 * ticks, times, OFFSETS)
    assert (asked - actual).tolist() == [7] * 9
    nothing = np.zeros(0, np.int64)
    assert seconds_since_start(clock, nothing, nothing, np.zeros(3, np.int64)).size == 0


@pytest.mark.parametrize("ticks", UNITS)
def test_seconds_between_events_do_not_depend_on_where_a_history_was_cut(ticks: int) -> None:
    clock, times = Clock(ticks), np.cumsum(np.random.default_rng(3).integers(0, 5 * ticks, size=50))
    whole = seconds_since_start(clock, times, times, np.asarray([0, 50]))
    for cut in range(1, 50):
        of_rest = seconds_since_start(clock, times[cut:], times[cut:], np.asarray([0, 50 - cut]))
        assert of_rest.tolist() == (whole[cut:] - whole[cut]).tolist()


def test_the_gap_of_the_first_event_is_to_the_one_before_it_that_was_cut_off() -> None:
    clock, times, offsets = Clock(1, ("gap",)), np.asarray([0, 7, 9, 40, 45, 50]), np.asarray([0, 6])
    whole = time_rows(clock, times, offsets)["gap"]
    for cut in range(6):
        earlier = Earlier(np.asarray([cut > 0, False, False]), np.asarray([times[cut - 1] * (cut > 0), 0, 0]))
        # An empty history, and one that begins with its first event.
        rest = np.concatenate((times[cut:], times))
        actual = time_rows(clock, rest, np.asarray([0, 6 - cut, 6 - cut, 12 - cut]), earlier)["gap"]
        assert actual.tolist() == [*whole[cut:].tolist(), *whole.tolist()]


def test_vectors_are_added_up() -> None:
    vectors = TimeVectors(4, ("hour", "gap"))
    vectors.initialize(torch.Generator().manual_seed(1))
    x, hour, gap = torch.randn(3, 4), torch.tensor([0, 23, 5]), torch.tensor([0, 64, 64])
    table = {name: next(module.parameters()) for name, module in vectors.vectors.items()}
    torch.testing.assert_close(vectors(x, {"hour": hour, "gap": gap}), x + table["hour"][hour] + table["gap"][gap])
    assert TimeVectors(4, ())(x, {}) is x
