"""Peak memory of a worker, and return of freed memory to the system.

Batches are jagged, so every step allocates tensors of other sizes, and glibc's heap fragments: a worker with 1 GB of live tensors
grew to 4 GB within half an hour. Mapping every large tensor separately avoids this at 1.4 times the time per step. Returning free
pages from time to time keeps the worker's size constant, at no cost that three paired runs could show. Between these times the heap
keeps freed memory: glibc would return it and request it again within a step, and each new page is a page fault.

The heap consists of huge pages where Linux has them for those who ask ("madvise", the default). A step passes over far more
memory than the processor has translated addresses of small pages for. Linux gives them by range of addresses, so the heap is made
as large as it will be before it is used, which takes no memory.
"""

import ctypes
import os
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
_HUGE_PAGES = 14  # of madvise, from mman.h
_LARGEST_BLOCK = 1 << 30  # bytes; larger ones are mapped separately
_FIRST_HEAP = _LARGEST_BLOCK - (1 << 20)
_MAPS = Path("/proc/self/maps")


def keep_freed_memory() -> bool:
    """Let this process's heap keep freed memory instead of returning it at once. Return True if the C library accepts that.

    The setting is permanent and covers all threads. Without glibc nothing changes.
    """
    libc = _glibc()
    if libc is None:
        return False
    accepted = bool(libc.mallopt(_TRIM_THRESHOLD, _LARGEST)) and bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK))
    _widen_heap(libc, _FIRST_HEAP)
    return accepted


def memory_trimmer() -> Callable[[], None]:
    """Return a function that returns free heap pages to the system. It does nothing if the C library has no malloc_trim."""
    libc = _glibc()
    if libc is None:
        return lambda: None

    def release() -> None:
        before = libc.sbrk(0)
        libc.malloc_trim(0)
        _widen_heap(libc, before - libc.sbrk(0))

    return release


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process, or None if it is not glibc."""
    try:
        libc = ctypes.CDLL(None)
        libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_size_t, (ctypes.c_ssize_t,)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
        libc.free.restype, libc.free.argtypes = None, (ctypes.c_void_p,)
        libc.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
        libc.mallopt.argtypes, libc.malloc_trim.argtypes = (ctypes.c_int, ctypes.c_int), (ctypes.c_size_t,)
    except (AttributeError, OSError, TypeError):
        return None
    return libc


def _widen_heap(libc: ctypes.CDLL, num_bytes: int) -> None:
    """Add addresses to the end of the heap, without memory, and ask for huge pages in all of it."""
    if num_bytes <= 0:
        return
    # glibc keeps a free end of the heap that is smaller than _LARGEST.
    libc.free(libc.malloc(min(num_bytes, _FIRST_HEAP)))
    with suppress(OSError):
        starts = [int(line.partition("-")[0], 16) for line in _MAPS.read_text().splitlines() if line.endswith("[heap]")]
        if starts:
            size = (libc.sbrk(0) - min(starts)) // os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PAGE_SIZE")
            libc.madvise(min(starts), size, _HUGE_PAGES)  # an error means that there are none


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
