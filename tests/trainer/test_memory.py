"""Free memory goes back to the system even where live objects lie between."""

import ctypes

import psutil
import pytest

from trainer.memory import memory_trimmer

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
