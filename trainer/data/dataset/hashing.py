"""64-bit hashes of ids, with two uses in bounded memory: the number of distinct values, and fair samples.

All results are functions of the values alone, so tasks and their order do not change a bit of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]


def hash_ids(ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.uint64]:
    """Return the 64-bit hash of integers or non-empty strings, the same in every process, platform and version.

    Integers go through the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
    https://doi.org/10.1145/2660193.2660195). The bytes of a string are first summed with pseudo-random weights by
    position (multilinear hashing), modulo 2^64.
    """
    if not len(ids):
        return np.zeros(0, np.uint64)
    if not pa.types.is_string(ids.type):
        return mix(ids.to_numpy().astype(np.int64).view(np.uint64))
    encoded = whole(ids).dictionary_encode()
    values = encoded.dictionary
    codes = encoded.indices.to_numpy()
    offsets = np.frombuffer(values.buffers()[1], np.int32, len(values) + 1, values.offset * 4).astype(np.int64)
    letters = np.frombuffer(values.buffers()[2], np.uint8, offsets[-1] - offsets[0], offsets[0])
    starts = offsets[:-1] - offsets[0]
    lengths = np.diff(offsets)
    weights = mix(np.arange(1, lengths.max(initial=0) + 1, dtype=np.uint64))
    positions = np.arange(len(letters)) - np.repeat(starts, lengths)
    sums = np.add.reduceat(letters.astype(np.uint64) * weights[positions], starts)
    hashes: npt.NDArray[np.uint64] = mix(sums + lengths.astype(np.uint64))[codes]
    return hashes


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64: a bijection of 64-bit numbers that looks random."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    shifted = np.empty_like(mixed)  # one buffer for all steps: fresh memory would cost more than the arithmetic
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        np.right_shift(mixed, np.uint64(shift), out=shifted)
        mixed ^= shifted
        if factor != 1:
            mixed *= np.uint64(factor)
    return mixed


def whole(column: pa.ChunkedArray | pa.Array) -> Any:
    """Return a column as one array."""
    if isinstance(column, pa.Array):
        return column
    chunks = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.array([], column.type)])


@dataclass(frozen=True)
class Distinct:
    """The number of distinct values: exact below `SIZE`, an estimate accurate to half a percent beyond it.

    The smallest `SIZE` hashes are kept. If the largest of them is at a fraction f of the range, about SIZE / f values
    are distinct (k minimum values, Bar-Yossef et al. 2002, https://doi.org/10.1007/3-540-45726-7_1).
    """

    smallest: Hashes
    SIZE = 65_536

    @classmethod
    def of(cls, hashes: Hashes) -> "Distinct":
        """Keep the smallest of these hashes."""
        return cls(np.unique(hashes)[: cls.SIZE])

    @classmethod
    def merged(cls, pieces: Iterable["Distinct"]) -> "Distinct":
        """Merge sketches of several sets of values."""
        return cls.of(np.concatenate([np.zeros(0, np.uint64), *(piece.smallest for piece in pieces)]))

    @property
    def count(self) -> int:
        """Number of distinct values."""
        if self.smallest.size < self.SIZE:
            return int(self.smallest.size)
        return round((self.SIZE - 1) / (float(self.smallest[-1]) / 2.0**64))


@dataclass(frozen=True)
class HashSample:
    """A fair sample of at most `SIZE` rows: those with the smallest keys. Keys are hashes, so no row is favoured."""

    # (n,) uint64, ascending.
    keys: Hashes
    # (n, ...) values of the rows.
    values: npt.NDArray[Any]
    SIZE = 65_536

    @classmethod
    def of(cls, keys: Hashes, values: npt.NDArray[Any]) -> "HashSample":
        """Sample rows with these keys and values."""
        if keys.size > cls.SIZE:
            chosen = np.argpartition(keys, cls.SIZE)[: cls.SIZE]
            keys = keys[chosen]
            values = values[chosen]
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], values[order])

    @classmethod
    def merged(cls, pieces: list["HashSample"]) -> "HashSample":
        """Merge samples of several sets of rows."""
        return cls.of(np.concatenate([p.keys for p in pieces]), np.concatenate([p.values for p in pieces]))


# The class has this name in results that interrupted preparations of earlier versions left (trainer/data/prepare/work.py).
Sample = HashSample
