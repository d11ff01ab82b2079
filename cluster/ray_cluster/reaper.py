"""Ends what a killed driver leaves of its own Ray session: two agents, which outlive their raylet, and stopped workers (Ray 2.60).

A process of its own, started with the session. It waits until the driver's end of a pipe is closed, which the system does when the
driver is killed. Then it ends those of the given processes, and of all that they have started, that are still there. A worker
that is stopped, or that hangs in a library, does not see that its raylet is gone. A session that ends by itself ends it first.
"""

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

GRACE_SECONDS = 3.0  # in which Ray ends its processes itself
LOOK_SECONDS = 2.0  # between two looks for processes that were started later; a raylet ends with its driver


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
    known = set(_marked(marks))
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        known |= _started_by(known)
    known |= _started_by(known)
    time.sleep(GRACE_SECONDS)
    for process in known:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # does nothing if the number has passed to another process


def _marked(marks: list[str]) -> Iterator[psutil.Process]:
    """Yield the processes that are still there."""
    for mark in marks:
        number, _, created = mark.partition(":")
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(number))
            if abs(process.create_time() - float(created)) < 1.0:  # the number has not passed to another process
                yield process


def _started_by(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Return the running processes that these have started. Those that have ended are removed from `processes`."""
    started: set[psutil.Process] = set()
    for process in list(processes):
        try:
            started.update(process.children(recursive=True))
        except psutil.NoSuchProcess:
            processes.discard(process)
    return started


if __name__ == "__main__":
    main(sys.argv[1:])
