"""Peak memory of this process and all it started, sampled while work runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from trainer.loop.memory import memory_trimmer

INTERVAL_SECONDS = 0.1


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak of bytes held so far, less those held at the start.

    Counts memory that is a process's own (USS), so that files and shared objects mapped by several are not counted at all:
    pages of files are the system's to drop. What is in Ray's object store is counted by its file in shared memory. What this
    process's heap keeps of earlier work is given back first.
    """
    memory_trimmer()()
    start = _held_bytes()
    peak = [start]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(INTERVAL_SECONDS):
            peak[0] = max(peak[0], _held_bytes())

    thread = threading.Thread(target=sample, daemon=True, name="peak-memory")
    thread.start()
    try:
        yield lambda: peak[0] - start
    finally:
        done.set()
        thread.join()


def _held_bytes() -> int:
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total + int(psutil.disk_usage("/dev/shm").used)
