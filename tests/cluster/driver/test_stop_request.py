"""A request to stop, in the run folder: the process that runs there receives SIGTERM once."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.driver import stop_request
from cluster.driver.rank_logs import DriverLog, follow_log, log_path
from cluster.driver.run_lock import locked
from cluster.driver.stage_record import StageRecord
from cluster.driver.stop_request import is_answered, obeying_requests, request_stop, running_process
from trainer.errors import UserError


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    monkeypatch.setattr(stop_request, "POLL_SECONDS", 0.02)
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_the_running_command_receives_a_signal_and_takes_the_request(run: Path, received: list[int]) -> None:
    with locked(run), obeying_requests(run):
        assert request_stop(run) == f"process {os.getpid()} on {os.uname().nodename}"
        end = time.monotonic() + 5.0
        while not received and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
    assert received == [signal.SIGTERM]
    assert is_answered(run)


def test_an_old_request_stops_nothing(run: Path, received: list[int]) -> None:
    (run / stop_request.FILE).write_text("{}")
    with locked(run), obeying_requests(run):
        time.sleep(0.1)
    assert received == []
    assert is_answered(run)


def test_nothing_to_stop_is_named(run: Path) -> None:
    with pytest.raises(UserError, match="no command runs in this run folder"):
        request_stop(run)
    with pytest.raises(UserError, match="no run folder"):
        request_stop(run / "x")


def test_a_process_of_another_machine_counts_as_running_without_a_visible_lock(run: Path) -> None:
    StageRecord(run).begin("train", "x")
    assert running_process(run) is None  # of this machine, and the lock says that it is gone
    state = (run / "state.json").read_text()
    (run / "state.json").write_text(state.replace(os.uname().nodename, "other"))
    assert running_process(run) == f"process {os.getpid()} on other"


def test_a_log_is_followed_until_the_run_ends(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = DriverLog(run)
    log.write("first")
    log.write("second")
    monkeypatch.setattr("cluster.driver.rank_logs.QUIET_SECONDS", 0.05)
    monkeypatch.setattr("cluster.driver.rank_logs.POLL_SECONDS", 0.01)
    with locked(run):
        pieces = follow_log(run, log_path(run, None), follow=True, tail=1)
        assert next(pieces).endswith("second\n")
        log.write("third")
        assert next(pieces).endswith("third\n")
    assert list(pieces) == []
    with pytest.raises(UserError, match=r"the run has driver\.log"):
        log_path(run, 0)
