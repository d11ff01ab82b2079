"""Ends what a killed driver leaves of its own Ray session: two agents, which outlive their raylet (Ray 2.60).

A process of its own, started with the session. It waits until the driver's end of a pipe is closed, which the system does when the
driver is killed. Then it ends those of the given processes that are still there. A session that ends by itself ends it first.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

GRACE_SECONDS = 3.0  # in which Ray ends its processes itself


@contextmanager
def reaping(processes: list[psutil.Process]) -> Iterator[None]:
    """End these processes if this one is killed during the body."""
    marks = [f"{process.pid}:{process.create_time()}" for process in processes]
    reaper = subprocess.Popen(
        [sys.executable, __file__, *marks],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the driver
    )
    try:
        yield
    finally:
        assert reaper.stdin is not None
        reaper.kill()  # before the pipe is closed, which would mean that this process was killed
        reaper.wait()
        reaper.stdin.close()


def descendants() -> list[psutil.Process]:
    """Return the processes that this one has started, and those that they have."""
    processes: list[psutil.Process] = psutil.Process().children(recursive=True)
    return processes


def started_since(earlier: list[psutil.Process]) -> list[psutil.Process]:
    """Return the descendants that are not among `earlier` ones. A program that uses Shoal has processes of its own."""
    known = {(process.pid, process.create_time()) for process in earlier if process.is_running()}
    return [process for process in descendants() if (process.pid, process.create_time()) not in known]


def main(marks: list[str]) -> None:
    """Wait for the driver to end, then end what is left of the processes. marks: "PID:CREATED" of each."""
    sys.stdin.read()
    time.sleep(GRACE_SECONDS)
    for mark in marks:
        number, _, created = mark.partition(":")
        try:
            process = psutil.Process(int(number))
            if abs(process.create_time() - float(created)) < 1.0:  # the number has not passed to another process
                process.kill()
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    main(sys.argv[1:])
