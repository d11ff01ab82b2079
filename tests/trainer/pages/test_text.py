"""Durations as text."""

import pytest

from trainer.pages.text import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0.4 s"),
        (3.24, "3.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (67.0, "1 min 07 s"),
        (75, "1 min 15 s"),
        (3599.7, "1 h 00 min"),
        (7260, "2 h 01 min"),
        (7_500.0, "2 h 05 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_are_written_in_their_two_largest_units(seconds, text):
    assert duration_text(seconds) == text
