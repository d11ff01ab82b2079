"""Peak memory of this process and all it started, sampled while work runs."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from trainer.loop.memory import memory_trimmer

INTERVAL_SECONDS = 0.1


def own_bytes() -> int:
    """Return the bytes that this process and all it started hold for themselves.

    Counts memory that is a process's own (USS), so that files and shared objects mapped by several are not counted at all:
    pages of files are the system's to drop. What is in Ray's object store is counted by its file in shared memory.
    """
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total + int(psutil.disk_usage("/dev/shm").used)


def anonymous_bytes() -> int:
    """Return the bytes of this process alone that are in no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status: no RssAnon; this benchmark needs Linux")


@contextmanager
def peak_memory(
    held: Callable[[], int] = own_bytes, every_seconds: float = INTERVAL_SECONDS
) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak of bytes held so far, less those held at the start.

    What this process's heap keeps of earlier work is given back first.

    Args:
        held: returns the bytes held now.
        every_seconds: between two samples.
    """
    memory_trimmer()()
    start = held()
    peak = [start]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(every_seconds):
            peak[0] = max(peak[0], held())

    thread = threading.Thread(target=sample, daemon=True, name="peak-memory")
    thread.start()
    try:
        yield lambda: peak[0] - start
    finally:
        done.set()
        thread.join()


def measured_apart(figures: Callable[[int], dict[str, Any]], number: int) -> dict[str, Any]:
    """Return the figures that a function measures for a number, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send_figures, args=(figures, number, sending))
    process.start()
    sending.close()  # otherwise a process that fails is waited for without end
    measured: dict[str, Any] = receiving.recv()
    process.join()
    return measured


def _send_figures(figures: Callable[[int], dict[str, Any]], number: int, pipe: Connection) -> None:
    pipe.send(figures(number))
