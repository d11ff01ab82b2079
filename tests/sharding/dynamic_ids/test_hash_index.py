"""The hash index answers like a dict, through collisions, removals and rebuilds."""

import itertools

import numpy as np
import pytest

from sharding.dynamic_ids.hash_index import CHUNK_KEYS, HashIndex


def expect(index: HashIndex, reference: dict[int, int], asked: np.ndarray) -> None:
    entries, _ = index.find(asked)
    assert entries.tolist() == [reference.get(key, -1) for key in asked.tolist()]


@pytest.mark.parametrize("spread", [1, 2**20, 2**58])  # runs of ids, and ids that differ in their high bits only
@pytest.mark.parametrize("capacity", [1, 7, 64, 300])
def test_answers_like_a_dict(capacity, spread):
    rng = np.random.default_rng(capacity)
    index, reference, numbers = HashIndex(capacity), dict[int, int](), itertools.count()
    every = np.unique(rng.integers(-500, 500, 3 * capacity + 20)) * spread
    for _ in range(200):
        present = np.asarray(list(reference), np.int64)
        gone = rng.permutation(present)[: rng.integers(0, present.size + 1)]
        index.remove(gone)
        for key in gone.tolist():
            del reference[key]
        absent = rng.permutation(np.asarray([key for key in every.tolist() if key not in reference], np.int64))
        keys = np.unique(absent[: rng.integers(0, capacity - len(reference) + 1)])
        entries = np.asarray([next(numbers) for _ in keys], np.int64)
        index.insert(keys, entries)
        reference.update(zip(keys.tolist(), entries.tolist(), strict=True))
        moved = keys[: keys.size // 2]
        others = np.asarray([next(numbers) for _ in moved], np.int64)
        index.replace(index.find(moved)[1], others)
        reference.update(zip(moved.tolist(), others.tolist(), strict=True))
        expect(index, reference, every)


def test_every_int64_is_a_key():
    keys = np.asarray([np.iinfo(np.int64).min, -2, -1, 0, 1, np.iinfo(np.int64).max], np.int64)
    index = HashIndex(16)
    expect(index, {}, keys)
    index.insert(keys[::2].copy(), np.arange(3))
    expect(index, dict(zip(keys[::2].tolist(), range(3), strict=True)), keys)


def test_more_keys_than_a_chunk_with_repeats():
    keys = np.arange(2 * CHUNK_KEYS + 5, dtype=np.int64) * 7919
    index = HashIndex(keys.size)
    index.insert(keys, np.arange(keys.size))
    asked = np.random.default_rng(0).integers(0, keys.size, 3 * CHUNK_KEYS)
    assert np.array_equal(index.find(keys[asked])[0], asked)
    assert not (index.find(keys + 1)[0] >= 0).any()
