"""Processes of a killed driver are ended, and no others."""

import os
import signal
import subprocess
import sys
import time

import psutil

from cluster.ray_cluster.reaper import GRACE_SECONDS, LOOK_SECONDS

SCRIPT = """
import subprocess, sys, time
from cluster.ray_cluster import reaper
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
earlier = reaper.descendants()
starts_another = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(120)'])"
started = subprocess.Popen([sys.executable, "-c", starts_another], start_new_session=True)
mine = reaper.started_since(earlier)
with reaper.reaping(mine):
    print(started.pid, other.pid, flush=True)
    if sys.argv[1] == "wait":
        time.sleep(120)
print("left", flush=True)
"""


def gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def started_driver(argument: str) -> tuple[subprocess.Popen[str], int, int]:
    """Return a driver, the process that it hands to its reaper, and another one of its own."""
    driver = subprocess.Popen([sys.executable, "-c", SCRIPT, argument], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    started, other = map(int, driver.stdout.readline().split())
    return driver, started, other


def end(*pids: int) -> None:
    for pid in pids:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_a_killed_driver_leaves_is_ended_and_nothing_else() -> None:
    driver, started, other = started_driver("wait")
    try:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        assert gone(started, 30.0)
        assert not gone(other, 0.3)
    finally:
        end(started, other)


def test_a_stopped_process_that_was_started_later_is_ended_too() -> None:
    """The one that started it ends with the driver, as a raylet does, and a stopped process sees nothing of that."""
    driver, started, other = started_driver("wait")
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 30.0
        while not children and time.monotonic() < deadline:
            children = psutil.Process(started).children()
            time.sleep(0.1)
        (child,) = children
        child.suspend()
        time.sleep(2 * LOOK_SECONDS)
        end(started, driver.pid)
        driver.wait()
        assert gone(child.pid, 30.0)
        assert not gone(other, 0.3)
    finally:
        end(started, other, *(child.pid for child in children))


def test_a_session_that_ends_by_itself_ends_nothing() -> None:
    driver, started, other = started_driver("leave")
    try:
        assert driver.wait(30.0) == 0
        assert not gone(started, GRACE_SECONDS + 2.0)
        assert not gone(other, 0.1)
    finally:
        end(started, other)
