"""Processes of a killed driver are ended, and no others."""

import os
import signal
import subprocess
import sys
import time

import psutil

SCRIPT = """
import subprocess, sys, time
from cluster.ray_cluster import reaper
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
mine = [p for p in reaper.descendants() if p.pid == started.pid]
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


def test_what_a_killed_driver_leaves_is_ended_and_nothing_else() -> None:
    driver = subprocess.Popen([sys.executable, "-c", SCRIPT, "wait"], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    started, other = map(int, driver.stdout.readline().split())
    try:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        assert gone(started, 30.0)
        assert not gone(other, 0.3)
    finally:
        for pid in (started, other):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
