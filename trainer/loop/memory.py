"""What a worker's memory holds at its peak, and giving freed memory back to the system.

Batches are jagged, so every step allocates tensors of other sizes, and glibc's heap fragments: a worker whose live tensors need
1 GB grew to 4 GB within half an hour. Mapping every large tensor afresh avoids it at 1.4 times the time per step; handing
back free pages now and then keeps the worker level, at no cost that three paired runs could show. Between these times the heap
keeps what is freed: glibc would give it back and ask for it again within a step, and each page that comes back is a page fault.
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
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, from malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process's heap keep freed memory for what comes next, rather than give it back at once; whether that was granted.

    For good and for all threads. Where the C library is not glibc nothing changes.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(set_option(_TRIM_THRESHOLD, _LARGEST)) and bool(set_option(_MMAP_THRESHOLD, 1 << 30))


def memory_trimmer() -> Callable[[], None]:
    """A function that returns free heap pages to the system; does nothing where the C library has no malloc_trim."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda: None

    def release() -> None:
        trim(0)

    return release


def forget_peak(device: torch.device) -> None:
    """Count the peak from here on: a worker's process may have done other work before. On Linux and on GPUs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process's whole life
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Largest memory so far: on a GPU of tensors on it, else what the process had in memory, program included."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
