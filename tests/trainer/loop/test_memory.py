"""Free memory is returned to the system even between live objects; a peak is kept until it is reset."""

import ctypes
import multiprocessing
import re
import resource
from pathlib import Path

import psutil
import pytest
import torch

from trainer.loop.memory import forget_peak, keep_freed_memory, memory_trimmer, peak_bytes

PIECE = 64 * 1024


def test_free_pages_between_live_ones_are_returned():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    process, trim = psutil.Process(), memory_trimmer()
    pieces = [bytearray(PIECE) for _ in range(4000)]
    kept = pieces[::50]
    full = process.memory_info().rss
    del pieces
    trim()
    assert full - process.memory_info().rss > 4000 * PIECE * 0.6
    assert len(kept) == 80


def faults_of_a_chain() -> int:
    x = torch.zeros(6500, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        x.relu().relu().relu().relu()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_that_was_freed_is_used_again_without_page_faults():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library has no mallopt")
    context = multiprocessing.get_context("spawn")  # the setting is permanent, so not in the process of the other tests
    with context.Pool(1) as pool:
        before = pool.apply(faults_of_a_chain)
        assert pool.apply(keep_freed_memory)
        pool.apply(faults_of_a_chain)
        after = pool.apply(faults_of_a_chain)
    assert before > 1000
    assert after < before / 10


def huge_bytes_of_tensors() -> int:
    """Return the bytes of huge pages with small tensors of 200 MB, after free memory was returned once."""
    release = memory_trimmer()
    for _ in range(2):
        tensors = [torch.ones(250_000) for _ in range(200)]
        huge = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
        assert huge is not None
        assert len(tensors) == 200
        del tensors
        release()
    return int(huge[1]) * 1024


def test_the_heap_has_huge_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text() or not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system has no huge pages for those who ask")
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        without = pool.apply(huge_bytes_of_tensors)
        pool.apply(keep_freed_memory)
        huge = pool.apply(huge_bytes_of_tensors)
    assert huge > 100 * 2**20
    assert "[always]" in setting.read_text() or without < 10 * 2**20


SIZE = 200 * 2**20


def peaks_around_a_large_block() -> tuple[int, int, int]:
    """Return the peak before a block of SIZE bytes, after it was freed, and after the peak was reset."""
    cpu = torch.device("cpu")
    forget_peak(cpu)
    before = peak_bytes(cpu)
    block = bytearray(SIZE)
    block[::4096] = b"x" * len(block[::4096])
    del block
    after = peak_bytes(cpu)
    forget_peak(cpu)
    return before, after, peak_bytes(cpu)


def test_the_peak_outlives_freed_memory_and_can_be_reset():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux can forget a peak")
    context = multiprocessing.get_context("spawn")  # the process of other tests may keep what it has freed
    with context.Pool(1) as pool:
        before, after, forgotten = pool.apply(peaks_around_a_large_block)
    assert SIZE * 0.9 < after - before < SIZE * 1.5
    assert forgotten - before < SIZE * 0.5
