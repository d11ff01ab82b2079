"""The queue gives the longest unused exactly, through many uses between sweeps."""

import numpy as np
import pytest

from sharding.dynamic_ids.eviction import CHUNK_ENTRIES, EvictionQueue, smallest
from sharding.dynamic_ids.selection import Offer
from sharding.world import ALONE


def empty_queue(capacity: int) -> EvictionQueue:
    return EvictionQueue(capacity, np.empty(0, np.int64), np.empty((2, 0), np.int64))


@pytest.mark.parametrize("min_age", [1, 3])
def test_the_longest_unused_rows_are_evicted_first(min_age):
    rng = np.random.default_rng(min_age)
    num_entries = 20 * CHUNK_ENTRIES
    last_used, queue = np.zeros(num_entries, np.int64), empty_queue(3 * CHUNK_ENTRIES)
    num_sweeps = 0
    for step in range(1, 40):
        used = rng.integers(0, num_entries, rng.choice([0, 100, 40_000]))
        last_used[used] = step
        expected = np.flatnonzero(last_used <= step - min_age)
        num = int(rng.choice([0, 1, 50, 3 * CHUNK_ENTRIES, 5 * CHUNK_ENTRIES]))
        expected = expected[np.argsort(last_used[expected], kind="stable")][:num]

        def sweep(most: int, step: int = step) -> Offer:
            nonlocal num_sweeps
            num_sweeps += 1
            idle = np.flatnonzero(last_used < step)
            idle = idle[smallest([last_used[idle], idle], most)]
            return Offer(idle, np.stack((last_used[idle], idle)))

        taken = queue.take(num, step, last_used, step - min_age, sweep, ALONE).entries
        assert taken.tolist() == expected.tolist()
        assert (last_used[taken] == step).all()
    assert 5 < num_sweeps < 60


def test_a_head_that_is_too_young_is_not_swept_again():
    last_used, queue, sweeps = np.zeros(8, np.int64), empty_queue(2), []

    def sweep(most: int) -> Offer:
        sweeps.append(most)
        return Offer(np.arange(most), np.stack((np.zeros(most, np.int64), np.arange(most))))

    for step in range(1, 10):
        assert queue.take(3, step, last_used, step - 10, sweep, ALONE).entries.size == 0
    assert sweeps == [2]
    assert queue.take(1, 10, last_used, 0, sweep, ALONE).entries.tolist() == [0]
    assert sweeps == [2]


@pytest.mark.parametrize("num", [1, 5, 40, 100])
def test_smallest_tuples_in_order(num):
    rng = np.random.default_rng(num)
    keys = [rng.integers(0, 3, 60), rng.integers(0, 4, 60), rng.permutation(60)]
    tuples = list(zip(*(key.tolist() for key in keys), strict=True))
    assert smallest(keys, num).tolist() == sorted(range(60), key=tuples.__getitem__)[:num]
