"""Peak memory of a worker, and return of freed memory to the system.

Batches are jagged, so every step allocates tensors of other sizes, and glibc's heap fragments: a worker with 1 GB of live tensors
grew to 4 GB within half an hour. Mapping every large tensor separately avoids this at 1.4 times the time per step. Returning free
pages from time to time keeps the worker's size constant, at no cost that three paired runs could show. Between these times the heap
keeps freed memory: glibc would return it and request it again within a step, and each new page is a page fault.
"""

import ctypes
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

EVERY_STEPS = 32
_TRIM_THRESHOLD = -1  # parameter of mallopt, from malloc.h
_MMAP_THRESHOLD = -3  # likewise
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process's heap keep freed memory instead of returning it at once. Return True if the C library accepts that.

    The setting is permanent and covers all threads. Without glibc nothing changes.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(set_option(_TRIM_THRESHOLD, _LARGEST)) and bool(set_option(_MMAP_THRESHOLD, 1 << 30))


def memory_trimmer() -> Callable[[], None]:
    """Return a function that returns free heap pages to the system. It does nothing if the C library has no malloc_trim."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda: None

    def release() -> None:
        trim(0)

    return release


def forget_peak(device: torch.device) -> None:
    """Reset the peak, since a worker's process may have done other work before. Works on Linux and on GPUs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux, or not allowed: then the peak covers the whole life of the process
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory: of tensors on a GPU, otherwise of the whole process with its program."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
