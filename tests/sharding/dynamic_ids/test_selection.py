"""The selection of the smallest keys of all ranks equals a sort of all keys, however they are divided."""

import numpy as np
import pytest

from sharding.dynamic_ids.selection import SAMPLES, Offer, num_among_smallest, num_up_to, smallest_of_all
from sharding.world import World


def keys_of(seed: int, size: int) -> np.ndarray:
    """Return unsorted keys of three elements: few values, few values, all different."""
    random = np.random.default_rng(seed)
    return np.stack((random.integers(-2, 3, size), random.integers(0, 9, size), random.permutation(size)))


def division(seed: int, size: int, world_size: int) -> np.ndarray:
    """Return the rank of each key: even, or nearly all of the smallest on the last rank and none on the first."""
    random = np.random.default_rng(seed)
    if seed % 2:
        return random.integers(0, world_size, size)
    rank = random.integers(min(1, world_size - 1), world_size, size)
    rank[keys_of(seed, size)[0] < 1] = world_size - 1
    return rank


def select(world: World, seed: int, size: int, nums: list[int]) -> list[list[int]]:
    keys = keys_of(seed, size)
    own = keys[:, division(seed, size, world.world_size) == world.rank]
    own = own[:, np.lexsort(own[::-1])]

    def offer(most: int) -> Offer:
        return Offer(own[-1, :most], own[:, :most], has_more=own.shape[1] > most)

    chosen = [smallest_of_all(offer, num, world) for num in nums]
    assert [(one.entries.size, one.num_of_all) for one in chosen] == [
        num_among_smallest(own, num, world) for num in nums
    ]
    assert [one.num_of_all for one in chosen] == [min(num, size) for num in nums]
    return [one.entries.tolist() for one in chosen]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [0, 1, 7, SAMPLES, 5 * SAMPLES, 60_000])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_smallest_of_all_ranks(rank_pool, world_size, size, seed):
    nums = [0, 1, size // 100, size // 3, max(0, size - 1), size, size + 5]
    keys = keys_of(seed, size)
    in_order = keys[-1, np.lexsort(keys[::-1])]
    everyone = rank_pool.run(world_size, select, seed, size, nums)
    for place, num in enumerate(nums):
        chosen = [entry for of_rank in everyone for entry in of_rank[place]]
        assert sorted(chosen) == sorted(in_order[:num].tolist())


def test_the_number_of_keys_up_to_a_limit():
    keys = keys_of(1, 500)
    keys = keys[:, np.lexsort(keys[::-1])]
    tuples = list(zip(*keys.tolist(), strict=True))
    for limit in [*tuples[::25], (-3, 0, 0), (9, 9, 9), (0, 4, -1), (0, -1, 7)]:
        assert num_up_to(keys, np.asarray(limit)) == sum(one <= limit for one in tuples)
