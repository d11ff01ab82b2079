"""Biases of scores: buckets of distances and of times are those of the formulas, for every number and on every path."""

import math

import pytest
import torch

from models.attention import bias
from models.attention.bias import (
    NUM_TIME_BUCKETS,
    TIME_BUCKET_BASE,
    PositionBias,
    counted_sums,
    sorted_sums,
    time_bounds,
    time_buckets,
    time_buckets_by_guess,
)

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


def test_a_slope_takes_more_from_a_score_the_farther_the_event_is():
    """Slopes begin as in Press et al. 2022, section 3: positive, and smaller from head to head."""
    bias = PositionBias("functional", num_heads=2, max_history=10, bidirectional=False)
    bias.initialize()
    actual = bias(torch.tensor([[[0, 1, 5]]]))
    torch.testing.assert_close(actual[0, :, 0], torch.tensor([[0.0, -1 / 16, -5 / 16], [0.0, -1 / 256, -5 / 256]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_sums_in_a_fixed_order_are_those_that_are_counted(dtype, count):
    random = torch.Generator().manual_seed(4)
    buckets = torch.randint(3, 11, (count,), generator=random)  # the first and the last buckets are empty
    values = torch.randn(2, count, generator=random).to(dtype)
    sums = sorted_sums(buckets, values, 13)
    assert sums.shape == (2, 13)
    expected = torch.zeros(2, 13, dtype=torch.float64).index_add_(1, buckets, values.double())
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(counted_sums(buckets, values, 13).double(), expected, rtol=1e-5, atol=1e-4)


def test_a_gradient_on_another_device_than_a_cpu_is_not_counted(monkeypatch):
    """Weighted counts are not deterministic on GPUs. A meta tensor takes the way of a GPU."""
    asked = []
    monkeypatch.setattr(bias, "counted_sums", lambda *_: pytest.fail("a GPU would add in any order"))
    monkeypatch.setattr(bias, "sorted_sums", lambda _, grad, size: asked.append(size) or grad.new_zeros(2, size))
    weight = torch.zeros(2, 7, device="meta", requires_grad=True)
    index = torch.zeros(1, 3, 4, dtype=torch.int64, device="meta")
    bias._rows_of(weight, index).sum().backward()
    assert asked == [7]
    assert weight.grad.shape == weight.shape
