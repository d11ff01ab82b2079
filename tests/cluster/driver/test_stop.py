"""Ctrl-C and SIGTERM during training: the first asks for a checkpoint and an end, the second ends at once."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from cluster.driver.progress import View
from cluster.driver.signals import stop_on_signal

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def earlier() -> Iterator[list[int]]:
    """Handlers that were installed before: which signals they got."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in NUMBERS}
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks_to_stop(earlier: list[int], number: signal.Signals) -> None:
    console = Console(record=True, quiet=False, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    with stop_on_signal(View(console)) as stop:
        assert not stop.is_set()
        send(number)
        assert stop.is_set()
    assert earlier == []
    assert "with a checkpoint" in console.export_text()


@pytest.mark.parametrize("number", NUMBERS)
def test_the_second_signal_ends_at_once(earlier: list[int], number: signal.Signals) -> None:
    with stop_on_signal(View(Console(quiet=True))) as stop:
        send(number)
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert stop.is_set()
    assert earlier == [number]


@pytest.mark.parametrize("number", NUMBERS)
def test_afterwards_signals_go_where_they_went_before(earlier: list[int], number: signal.Signals) -> None:
    with stop_on_signal(View(Console(quiet=True))) as stop:
        pass
    send(number)
    assert earlier == [number]
    assert not stop.is_set()
