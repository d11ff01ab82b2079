"""The expected work of the busiest rank, against known values and brute force."""

import numpy as np
import pytest

from cluster.plan.simulation.straggler import ExampleWork, slowest_if_dealt, slowest_of_examples
from trainer.data.stream.dealing import BatchLimit, dealt, owners, runs_within

LENGTHS = np.arange(1, 101)
RAW = np.exp(-LENGTHS / 25.0)
SKEWED = ExampleWork(LENGTHS, RAW / RAW.sum(), LENGTHS + 0.02 * LENGTHS**2.0)
EQUAL = ExampleWork(np.asarray([7]), np.ones(1), np.asarray([3.0]))


def drawn(examples: ExampleWork, batch_size: int, num_ranks: int, draws: int) -> tuple[float, float]:
    """Return mean and standard error of the busiest rank's work over drawn batches."""
    rng = np.random.default_rng(5)
    ranks = np.arange(batch_size) % num_ranks
    most = []
    for _ in range(draws):
        work = examples.work[rng.choice(examples.lengths.size, batch_size, p=examples.probabilities)]
        most.append(np.bincount(ranks, work, num_ranks).max())
    return float(np.mean(most)), float(np.std(most) / np.sqrt(draws))


@pytest.mark.parametrize(
    ("batch_size", "num_ranks"), [(1, 1), (64, 8), (100, 8), (8, 8), (3, 8), (10, 7), (4096, 1024), (500, 1024)]
)
def test_it_equals_the_mean_over_drawn_batches(batch_size: int, num_ranks: int) -> None:
    mean, error = drawn(SKEWED, batch_size, num_ranks, 600)
    assert slowest_of_examples(SKEWED, batch_size, num_ranks) == pytest.approx(mean, abs=4.0 * error + 1e-3 * mean)


def test_one_rank_has_the_mean_of_all() -> None:
    assert slowest_of_examples(SKEWED, 64, 1) == pytest.approx(64 * SKEWED.mean)
    of_a_budget = slowest_if_dealt(SKEWED, BatchLimit(4096, of_events=True), 1)
    assert of_a_budget == pytest.approx(4096 / float(SKEWED.probabilities @ LENGTHS) * SKEWED.mean)
    assert slowest_if_dealt(SKEWED, BatchLimit(64, of_events=False), 1) == pytest.approx(64 * SKEWED.mean)


def test_equal_examples_leave_the_uneven_shares_only() -> None:
    assert slowest_of_examples(EQUAL, 64, 8) == pytest.approx(8 * 3.0)
    assert slowest_of_examples(EQUAL, 65, 8) == pytest.approx(9 * 3.0)
    assert slowest_of_examples(EQUAL, 3, 1024) == pytest.approx(3.0)


def test_one_example_on_each_of_two_ranks_is_the_larger_one_of_two() -> None:
    of_two = ExampleWork(np.asarray([1, 2]), np.asarray([0.5, 0.5]), np.asarray([1.0, 2.0]))
    assert slowest_of_examples(of_two, 2, 2) == pytest.approx(0.25 * 1.0 + 0.75 * 2.0, rel=1e-2)


def test_it_grows_with_ranks_and_shrinks_relative_to_the_mean_with_the_share() -> None:
    of_ranks = [slowest_of_examples(SKEWED, 16 * num_ranks, num_ranks) for num_ranks in (1, 2, 8, 64, 1024)]
    assert of_ranks == sorted(of_ranks)
    relative = [slowest_of_examples(SKEWED, 64 * share, 64) / (share * SKEWED.mean) for share in (1, 16, 256, 65536)]
    assert relative == sorted(relative, reverse=True)
    assert relative[-1] == pytest.approx(1.0, abs=0.02)


def test_a_large_share_follows_the_normal_distribution() -> None:
    # The expected maximum of 64 normal variables is 2.344 standard deviations.
    share = 200_000
    expected = share * SKEWED.mean + 2.344 * np.sqrt(share) * SKEWED.deviation
    assert slowest_of_examples(SKEWED, 64 * share, 64) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("by_work", [False, True])
@pytest.mark.parametrize("of_events", [False, True])
def test_a_batch_that_is_dealt_is_more_even_than_equal_numbers(of_events: bool, by_work: bool) -> None:
    mean_length = float(SKEWED.probabilities @ LENGTHS)
    number = round(64 * 32 * (mean_length if of_events else 1))
    if_dealt = slowest_if_dealt(SKEWED, BatchLimit(number, of_events), 32, by_work)
    by_number = slowest_of_examples(SKEWED, 64 * 32, 32)
    even = 64 * SKEWED.mean
    assert 0.999 * even < if_dealt < 1.05 * even < by_number


def test_it_is_deterministic() -> None:
    limit = BatchLimit(4096, of_events=True)
    assert slowest_if_dealt(SKEWED, limit, 16) == slowest_if_dealt(SKEWED, limit, 16)


def test_owners_are_the_ranks_that_elements_are_dealt_to() -> None:
    lengths = np.random.default_rng(1).integers(0, 50, 500)
    bounds = runs_within(lengths, 400, complete=True)
    ranks = owners(lengths, bounds, 7)
    for rank in range(7):
        assert np.flatnonzero(ranks == rank).tolist() == dealt(lengths, bounds, rank, 7).tolist()
