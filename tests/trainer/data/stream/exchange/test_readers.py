"""The rank that reads each row group: a function of the order and the number of ranks, tested without starting ranks."""

import numpy as np
import pytest

from trainer.data.stream.dealing import owners, runs_within
from trainer.data.stream.exchange.lengths import ranges_of
from trainer.data.stream.exchange.readers import readers_of
from trainer.data.stream.order import EpochOrder

MANY_RANKS = 1024
NUM_GROUPS = 10_000


def uneven(num_groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, events) of row groups as prepare writes them: 64 of a part have equal rows, users have uneven histories."""
    random = np.random.default_rng(seed)
    users_of_parts = random.poisson(10_000, size=-(-num_groups // 64))
    rows = (users_of_parts[:, None] * np.arange(65) // 64)[:, :].astype(np.int64)
    sizes = np.diff(rows, axis=1).reshape(-1)[:num_groups]
    lengths = random.lognormal(4.0, 1.0, size=int(sizes.sum())).astype(np.int64) + 1
    return sizes, np.add.reduceat(lengths, np.cumsum(sizes) - sizes)


def imbalance(values: np.ndarray) -> float:
    return float(values.max() / values.mean())


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("streams", [64, 1024])
def test_1024_ranks_read_even_shares_of_10000_row_groups(streams, epoch):
    """The shares of row groups, of rows and of events are even, and each row group is read by one rank."""
    rows, events = uneven(NUM_GROUPS)
    order = EpochOrder(tuple(rows.tolist()), seed=1, epoch=epoch, max_streams=streams)
    readers = readers_of(order.permuted, events, order.num_streams, MANY_RANKS)
    assert readers.size == NUM_GROUPS
    assert imbalance(np.bincount(readers, minlength=MANY_RANKS)) <= 1.05
    assert imbalance(np.bincount(readers, rows, MANY_RANKS)) <= 1.05
    assert imbalance(np.bincount(readers, events, MANY_RANKS)) <= 1.05


def test_1024_ranks_train_even_shares_of_every_batch():
    """The largest share of a step, over all steps, is what the other ranks wait for."""
    random = np.random.default_rng(1)
    lengths = np.minimum(random.lognormal(4.0, 1.0, size=600_000).astype(np.int64) + 1, 200)
    bounds = runs_within(lengths, 4096 * MANY_RANKS, complete=True)
    events = np.zeros((bounds.size - 1, MANY_RANKS))
    np.add.at(
        events, (np.repeat(np.arange(bounds.size - 1), np.diff(bounds)), owners(lengths, bounds, MANY_RANKS)), lengths
    )
    full = events[:-1]  # the last batch of the epoch may be small
    assert full.shape[0] >= 5
    assert full.max(axis=1).sum() / full.mean(axis=1).sum() <= 1.05
    assert imbalance(full.sum(axis=0)) <= 1.05


def test_1024_ranks_keep_even_shares_of_the_lengths():
    bounds = ranges_of(NUM_GROUPS, MANY_RANKS)
    assert (bounds[0], bounds[-1]) == (0, NUM_GROUPS)
    assert imbalance(np.diff(bounds)) <= 1.05


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 64, 100])
def test_the_row_groups_that_are_read_at_a_time_are_dealt_evenly(world_size):
    """So that ranks read at the same time, and not one after another."""
    _, events = uneven(640)
    order = EpochOrder((10,) * 640, seed=2, epoch=1)
    readers = readers_of(order.permuted, events, order.num_streams, world_size)
    block = world_size * max(1, 64 // world_size)
    for start in range(0, 640 // block * block, block):
        counts = np.bincount(readers[order.permuted[start : start + block]], minlength=world_size)
        assert counts.min() == counts.max()


def test_fewer_row_groups_than_ranks_are_read_by_as_many_ranks():
    readers = readers_of(np.arange(5), np.asarray([3, 1, 4, 1, 5]), 5, 8)
    assert sorted(readers.tolist()) == [0, 1, 2, 3, 4]
    assert readers_of(np.zeros(0, np.int64), np.zeros(0, np.int64), 0, 4).size == 0
