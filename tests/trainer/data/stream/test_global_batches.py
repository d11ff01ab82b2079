"""Runs within a budget, and how their elements are dealt, against the rules written plainly."""

from itertools import pairwise

import numpy as np
import pytest

from trainer.data.stream.dealing import dealt, runs_within
from trainer.data.stream.examples import Examples, num_windows
from trainer.data.stream.global_batches import GlobalBatches


def plain_runs(lengths: list[int], budget: int) -> list[int]:
    bounds, total = [0], 0
    for place, length in enumerate(lengths):
        if place > bounds[-1] and total + length > budget:
            bounds.append(place)
            total = 0
        total += length
    return [*bounds, len(lengths)] if lengths else [0]


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_the_longest_that_fit(seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, random.integers(1, 12), size=random.integers(1, 60))
    budget = int(random.integers(1, 40))
    assert runs_within(lengths, budget, complete=True).tolist() == plain_runs(lengths.tolist(), budget)


def test_nothing_longer_than_the_budget_is_lost_or_joined():
    assert runs_within(np.asarray([9, 9, 0, 1]), 5, complete=True).tolist() == [0, 1, 2, 4]


def test_a_run_that_may_continue_is_left_out():
    lengths = np.asarray([3, 3, 3, 1])
    assert runs_within(lengths, 6, complete=False).tolist() == [0, 2]
    assert runs_within(lengths, 6, complete=True).tolist() == [0, 2, 4]
    assert runs_within(lengths, 100, complete=False).tolist() == [0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_element_is_dealt_to_one_rank_and_the_sums_are_even(seed, world_size):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 50, size=90)
    bounds = np.asarray([0, 1, 30, 30 + world_size, 90])
    shares = [dealt(lengths, bounds, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(90))
    for share in shares:
        assert share.tolist() == sorted(share.tolist())
    for first, last in pairwise(bounds.tolist()):
        sums = [int(lengths[share[(share >= first) & (share < last)]].sum()) for share in shares]
        assert max(sums) - min(sums) <= lengths[first:last].max()


def test_equal_lengths_are_dealt_by_their_place():
    lengths, bounds = np.full(6, 4), np.asarray([0, 6])
    assert [dealt(lengths, bounds, rank, 2).tolist() for rank in (0, 1)] == [[0, 3, 4], [1, 2, 5]]


def test_windows_of_a_history():
    train_end = np.asarray([0, 1, 2, 6, 7, 11, 12], dtype=np.int32)
    assert num_windows(train_end, 5).tolist() == [1, 1, 1, 1, 2, 2, 3]


def warning_of(batch_size: int, world_size: int, tokens: int | None = None, num_examples: int = 100_000) -> str:
    examples = Examples((num_examples,), np.asarray([0, num_examples]), 50, 20)
    return GlobalBatches(examples, batch_size, tokens, 1, 0, world_size).share_warning() or ""


@pytest.mark.parametrize(("batch_size", "world_size"), [(128, 1), (128, 64), (129, 2), (1000, 48), (1, 1)])
def test_even_shares_are_not_warned_of(batch_size, world_size):
    assert warning_of(batch_size, world_size) == ""


def test_even_shares_of_more_ranks_than_streams_are_warned_of_for_their_reading_alone():
    assert "up to 16 workers read each row group" in warning_of(2048, 1024)
    assert "The shares are even" in warning_of(2048, 1024)


def test_uneven_shares_and_idle_ranks_are_warned_of():
    assert "64 workers: some train 2 examples of a batch, others train 1" in warning_of(100, 64)
    assert "such as 128" in warning_of(100, 64)
    assert "train.batch_size = 100, fewer than the 128 workers: at each step at least 28" in warning_of(100, 128)
    assert "holds about 50 examples, fewer than the 64 workers" in warning_of(1, 64, tokens=1000)
    assert warning_of(1, 32, tokens=1000) == ""
    assert "the dataset has 30 training examples, fewer than the 64 workers" in warning_of(128, 64, num_examples=30)
