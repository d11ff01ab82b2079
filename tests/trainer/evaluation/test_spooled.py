"""Arrays in temporary files: the values, and sums that do not depend on where the arrays are."""

import errno
import os

import numpy as np
import pytest

from trainer.errors import UserError
from trainer.evaluation import spooled as module
from trainer.evaluation.slices import masks
from trainer.evaluation.spooled import Spool, blocks, kept, spooled, total


@pytest.mark.parametrize("shape", [0, 7, (5, 3), 300_000])
def test_an_array_has_its_shape_and_is_writable(shape):
    array = spooled(shape, np.float64)
    assert array.shape == np.zeros(shape).shape
    assert not array.any()
    array[...] = 2.0
    assert array.sum() == 2.0 * array.size
    assert isinstance(array, np.memmap) == (array.nbytes >= module.LEAST_BYTES)


def test_a_large_array_is_kept_as_a_copy_in_a_file():
    small = np.arange(5)
    large = np.arange(200_000)
    copy = kept(large)
    assert kept(small) is small
    assert isinstance(copy, np.memmap)
    assert (copy == np.arange(200_000)).all()
    large[0] = 9
    assert copy[0] == 0


@pytest.mark.parametrize("size", [0, 1, 10, 11])
def test_blocks_cover_all_entries_once(size, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    covered = [entry for block in blocks(size) for entry in range(size)[block]]
    assert covered == list(range(size))
    assert total(size, lambda block: float(np.arange(size)[block].sum())) == sum(range(size))


def no_space(file: int, offset: int, size: int) -> None:
    """Refuse space as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_error_that_names_the_setting(monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(UserError, match="no space left for temporary files; set TMPDIR"):
        spooled(200_000, np.float64)


def test_a_full_disk_is_an_error_while_an_array_grows(monkeypatch):
    monkeypatch.setattr(module, "LEAST_BYTES", 0)
    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda prefix: open("/dev/full", "wb"))  # noqa: SIM115 - closed by the spool
    with pytest.raises(UserError, match="no space left for temporary files; set TMPDIR"):
        Spool(np.float64).append(np.zeros(5))


def test_the_space_of_an_array_is_on_the_disk_before_it_is_used(monkeypatch):
    """Otherwise a full disk ends the process by a signal, at a write to the mapping."""
    reserved = []
    monkeypatch.setattr(os, "posix_fallocate", lambda file, offset, size: reserved.append((offset, size)))
    assert spooled((3, 100_000), np.float64).shape == (3, 100_000)
    assert reserved == [(0, 2_400_000)]


def test_all_masks_of_an_array_are_in_one_file(monkeypatch):
    """A process may have about 1,000 files open, and a model may have many slices."""
    monkeypatch.setattr(module, "LEAST_BYTES", 0)
    monkeypatch.setattr(module, "BLOCK", 7)
    numbers = np.arange(100) % 24
    before = len(os.listdir("/proc/self/fd"))
    inside = list(masks(numbers, range(24)))
    assert len(os.listdir("/proc/self/fd")) - before <= 1
    assert all((mask == (numbers == number)).all() for number, mask in enumerate(inside))
