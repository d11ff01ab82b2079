"""Biases of scores: buckets of distances and of times are those of the formulas, for every number and on every path."""

import math

import torch

from models.attention.bias import NUM_TIME_BUCKETS, TIME_BUCKET_BASE, time_bounds, time_buckets, time_buckets_by_guess

FIRST_AGES = [math.ceil(TIME_BUCKET_BASE**bucket) for bucket in range(NUM_TIME_BUCKETS)]


def test_a_time_bucket_starts_at_exactly_the_age_that_the_formula_gives():
    """In float32 the logarithm of an age of days or more is too coarse: ages just before a bound fell into the next bucket."""
    for bucket in range(1, 100):
        first = FIRST_AGES[bucket]
        ages = torch.arange(max(0, first - 1000), min(first + 1000, FIRST_AGES[bucket + 1]))
        expected = torch.where(ages >= first, bucket, bucket - 1)
        # The first buckets are narrower than the stretch of ages that is looked at.
        near = ages >= FIRST_AGES[bucket - 1]
        assert torch.equal(time_buckets(ages)[near], expected[near]), bucket


def test_a_time_bucket_guessed_and_corrected_is_the_same():
    """GPU kernels cannot search; they guess a bucket by a float32 logarithm, which is off by one at most."""
    around = [first + step for first in FIRST_AGES for step in (-2, -1, 0, 1) if first + step >= 0]
    ages = torch.tensor([*range(5000), *around, 2**62])
    bounds = time_bounds(ages.device)
    assert torch.equal(time_buckets_by_guess(ages, bounds), time_buckets(ages))
    assert time_buckets(ages).max() == NUM_TIME_BUCKETS - 1
    assert time_buckets(torch.tensor([0, 1, 2])).tolist() == [0, 0, 2]
