"""Arrays with an entry per user or impression in temporary files, so that the memory of an evaluation does not grow with them.

The files have no name and disappear with their arrays. They are in the folder of temporary files (TMPDIR). Work on an
array goes over blocks of it. `total` adds a value of each block, and a sum of rounded numbers depends on its grouping: the blocks
are part of that result. The sum of a whole array, `cumulated` and `cumulated_from_end` do not depend on blocks.
"""

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from trainer.errors import UserError
from trainer.storage.files import reserve_space

BLOCK = 1 << 20  # entries of a block
LEAST_BYTES = 1 << 20  # smaller arrays stay in memory


def spooled(shape: int | tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Return an array of zeros that is stored in a temporary file if it is large."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < max(1, LEAST_BYTES):
        return np.zeros(shape, dtype)
    with enough_space(), tempfile.TemporaryFile(prefix="shoal-evaluation-") as file:
        reserve_space(file, size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)  # the mapping outlives the open file


@contextmanager
def enough_space() -> Iterator[None]:
    """Raise UserError where a temporary file finds no space."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        folder = tempfile.gettempdir()
        raise UserError(
            f"{folder}: no space left for temporary files; set TMPDIR to a folder on a larger disk"
        ) from error


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


def whole_key_blocks(keys: np.ndarray) -> Iterator[slice]:
    """Yield blocks of ascending keys that never divide equal keys; one empty block if there are none.

    A block is larger than BLOCK only if one key has more entries.
    """
    start = 0
    while start < keys.size or start == 0:
        stop = min(keys.size, start + BLOCK)
        if stop < keys.size:
            first = int(np.searchsorted(keys, keys[stop], side="left"))
            stop = first if first > start else int(np.searchsorted(keys, keys[stop], side="right"))
        yield slice(start, stop)
        if stop == 0:
            return
        start = stop


def total(size: int, of_block: Callable[[slice], float]) -> float:
    """Return the sum of a value of each block."""
    return float(sum(of_block(block) for block in blocks(size)))


def filled(size: int, dtype: np.typing.DTypeLike, of_block: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Return an array of which each block is computed by a function."""
    array = spooled(size, dtype)
    for block in blocks(size):
        array[block] = of_block(block)
    return array


def taken(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the values at some places (n,)."""
    return filled(places.size, values.dtype, lambda block: values[places[block]])


def cumulated(values: np.ndarray) -> np.ndarray:
    """Return the cumulative sum of values (n,), float64: the bits of numpy's, because both add one number after another."""
    sums = spooled(values.size, np.float64)
    last = 0.0
    for block in blocks(values.size):
        sums[block] = np.cumsum(np.concatenate(([last], values[block])))[1:]
        last = float(sums[block][-1]) if values.size else last
    return sums


def cumulated_from_end(values: np.ndarray) -> np.ndarray:
    """Return the sum of each value and all after it, (n,) float64: the bits of numpy's cumulative sum of the reversed values."""
    sums = spooled(values.size, np.float64)
    last = 0.0
    for block in reversed(list(blocks(values.size))):
        sums[block] = np.cumsum(np.concatenate(([last], values[block][::-1])))[1:][::-1]
        last = float(sums[block][0]) if values.size else last
    return sums


class Spool:
    """An array that grows at its end, in a temporary file once it is large."""

    def __init__(self, dtype: np.typing.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._held: list[np.ndarray] = []
        self._held_bytes = 0
        self._file: IO[bytes] | None = None
        self.size = 0

    def append(self, values: np.ndarray) -> None:
        """Add values (n,) at the end."""
        own = np.array(values, dtype=self._dtype)  # a copy: the caller's may be a view of much more
        self._held.append(own)
        self._held_bytes += own.nbytes
        self.size += own.size
        if self._held_bytes > LEAST_BYTES:
            self._write()

    def array(self) -> np.ndarray:
        """Return all values, and end the growth."""
        if self._file is None:
            return np.concatenate([np.zeros(0, self._dtype), *self._held])
        self._write()
        with self._file as file:
            return np.memmap(file, dtype=self._dtype, mode="r+", shape=(self.size,))

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="shoal-evaluation-")  # noqa: SIM115 - closed by array()
        with enough_space():
            for values in self._held:
                self._file.write(values.data)
            self._file.flush()
        self._held = []
        self._held_bytes = 0


def chosen(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the values (n,) where a mask is true."""
    some = Spool(values.dtype)
    for block in blocks(values.size):
        some.append(values[block][mask[block]])
    return some.array()


def unique_keys(keys: np.ndarray) -> np.ndarray:
    """Return each of some ascending keys once."""
    unique = Spool(keys.dtype)
    for block in whole_key_blocks(keys):
        unique.append(np.unique(keys[block]))
    return unique.array()
