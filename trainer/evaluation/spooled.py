"""Arrays with an entry per user in temporary files, so that the memory of an evaluation does not grow with its users. Pure numpy.

The files have no name and disappear with their arrays. They are in the folder of temporary files (TMPDIR). Sums over such an array
go over blocks of it. The blocks are part of the result: a sum of rounded numbers depends on its grouping. Arrays of up to one block
have the sums of numpy.
"""

import tempfile
from collections.abc import Callable, Iterator

import numpy as np

BLOCK = 1 << 20  # entries of a block
LEAST_BYTES = 1 << 20  # smaller arrays stay in memory


def spooled(shape: int | tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Return an array of zeros that is stored in a temporary file if it is large."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < LEAST_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(prefix="shoal-evaluation-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)  # the mapping outlives the open file


def kept(array: np.ndarray) -> np.ndarray:
    """Return a copy of an array in a temporary file, or a small array itself."""
    if array.nbytes < LEAST_BYTES:
        return array
    copy = spooled(array.shape, array.dtype)
    copy[...] = array
    return copy


def blocks(size: int) -> Iterator[slice]:
    """Yield the blocks of an array with `size` entries; one empty block if it has none."""
    for start in range(0, max(1, size), BLOCK):
        yield slice(start, min(size, start + BLOCK))


def total(size: int, of_block: Callable[[slice], float]) -> float:
    """Return the sum of a value of each block."""
    return float(sum(of_block(block) for block in blocks(size)))
