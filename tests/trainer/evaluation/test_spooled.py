"""Arrays in temporary files: the values, and sums that do not depend on where the arrays are."""

import numpy as np
import pytest

from trainer.evaluation import spooled as module
from trainer.evaluation.spooled import blocks, kept, spooled, total


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
