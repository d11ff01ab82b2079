"""Biases of scores by the distance of two events, in positions and in time.

Each bias gives a number per head for every pair of a query and a key: from a learned table by the distance, from one by buckets
of it, or from a learned slope. Shapes: R rows, Q queries, K keys, H heads.
"""

import math

import torch
from torch import Tensor, nn

from models import devices
from models.attention.config import NUM_POSITION_BUCKETS, NUM_TIME_BUCKETS

TIME_BUCKET_BASE = math.exp(0.301)  # each bucket is 1.35 times as wide as the previous one, as in HSTU's published code


class PositionBias(nn.Module):
    """Bias by the distance of positions.

    "exact" is T5's without buckets (HSTU), "bucketed" that of Raffel et al. 2020 (arXiv:1910.10683, section 2.1), "functional"
    -slope x distance with learned slopes (Press et al. 2022, arXiv:2108.12409).
    """

    def __init__(self, form: str, num_heads: int, max_history: int, bidirectional: bool) -> None:
        super().__init__()
        self.form = form
        self.max_history = max_history
        self.bidirectional = bidirectional
        sides = 2 if bidirectional else 1
        match form:
            case "exact":
                self.weight = nn.Parameter(torch.zeros(num_heads, sides * max_history))
            case "bucketed":
                self.weight = nn.Parameter(torch.zeros(num_heads, sides * min(NUM_POSITION_BUCKETS, max_history)))
            case _:
                self.slope = nn.Parameter(torch.zeros(num_heads))

    def forward(self, distance: Tensor) -> Tensor:
        """Return the bias (r, H, Q, K) for distances (r, Q, K) int64."""
        if self.form == "functional":
            return -self.slope[:, None, None] * distance.abs()[:, None].to(self.slope.dtype)
        return _rows_of(self.weight, self.buckets(distance))

    def buckets(self, distance: Tensor) -> Tensor:
        """Return the column of the table for each distance, int64."""
        side = self.weight.shape[1] // (2 if self.bidirectional else 1)
        far = distance.abs() if self.bidirectional else distance.clamp(min=0)
        if self.form == "bucketed":
            # The first half of the buckets holds one distance each; the others grow to cover the longest history.
            exact = max(1, side // 2)
            growth = (side - exact) / max(1e-9, math.log(max(self.max_history, exact + 1) / exact))
            wide = exact + ((far.clamp(min=1).double() / exact).log() * growth).long()
            far = torch.where(far < exact, far, wide)
        bucket = far.clamp(max=side - 1)
        return bucket + side * (distance < 0) if self.bidirectional else bucket

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the slopes to a geometric series over heads, from 1/2 at most to 1/256 (Press et al. 2022, section 3)."""
        if self.form == "functional":
            heads = self.slope.numel()
            self.slope.copy_(torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=self.slope.dtype) / heads))


class TimeBias(nn.Module):
    """Bias by the age of the key.

    It is a number per bucket of log seconds (Zhai et al. 2024, arXiv:2402.17152, appendix), or -factor x log(1 + age).
    """

    def __init__(self, form: str, num_heads: int) -> None:
        super().__init__()
        self.form = form
        if form == "bucketed":
            self.weight = nn.Parameter(torch.zeros(num_heads, NUM_TIME_BUCKETS))
        else:
            self.slope = nn.Parameter(torch.zeros(num_heads))

    def forward(self, prepared: Tensor) -> Tensor:
        """Return the bias (R, H, Q, K) for the result of `prepare_ages` for ages (R, Q, K)."""
        if self.form == "functional":
            return -self.slope[:, None, None] * prepared[:, None].to(self.slope.dtype)
        return _rows_of(self.weight, prepared)

    @torch.no_grad()
    def initialize(self) -> None:
        """Reset the weights: recent events are not preferred before training."""
        if self.form == "functional":
            self.slope.zero_()


def prepare_ages(age: Tensor, form: str) -> Tensor:
    """Return the input of a bias of this form: buckets, int32, or log(1 + age), float64.

    age: int64 seconds, not negative. The result is the same for all layers and computed once, since logarithms are expensive.
    """
    if form == "functional":
        return age.double().log1p()
    return torch.bucketize(age, time_bounds(age.device), right=True, out_int32=True)


def time_buckets(age: Tensor) -> Tensor:
    """Return the bucket of each age, int64: floor(log(max(1, age)) / log(base)), at most the last; exact for every age."""
    return torch.bucketize(age, time_bounds(age.device), right=True)


def time_buckets_by_guess(age: Tensor, bounds: Tensor) -> Tensor:
    """Return the same buckets elementwise, for kernels that cannot search. `bounds`: the result of `time_bounds`.

    A logarithm in float32 is off by one bucket at most, and only next to a bound.
    """
    last = NUM_TIME_BUCKETS - 1
    guess = (age.clamp(min=1).float().log() / math.log(TIME_BUCKET_BASE)).long().clamp(max=last)
    too_low = (guess < last) & (age >= bounds[guess.clamp(max=last - 1)])
    too_high = (guess > 0) & (age < bounds[(guess - 1).clamp(min=0)])
    return guess + too_low.long() - too_high.long()


def time_bounds(device: torch.device) -> Tensor:
    """Return the lowest age of each bucket but the first, (NUM_TIME_BUCKETS - 1,) int64. Some early buckets are empty."""
    bounds = [math.ceil(TIME_BUCKET_BASE**bucket) for bucket in range(1, NUM_TIME_BUCKETS)]
    return devices.from_host(torch.tensor(bounds), device)


class _Gather(torch.autograd.Function):
    """weight[:, index], with a backward pass that counts.

    The backward pass of index_select would add millions of gradients to a few entries.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight_HB: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_buckets = weight_HB.shape[1]  # type: ignore[attr-defined]
        return weight_HB.index_select(1, index.reshape(-1)).view(weight_HB.shape[0], *index.shape)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors  # type: ignore[attr-defined]
        flat = index.reshape(-1)
        size = ctx.num_buckets  # type: ignore[attr-defined]
        grad = grad_outputs[0].reshape(grad_outputs[0].shape[0], -1)
        sums = (counted_sums if devices.is_host(flat.device) else sorted_sums)(flat, grad, size)
        return sums.to(grad.dtype), None


def counted_sums(bucket_M: Tensor, value_HM: Tensor, num_buckets: int) -> Tensor:
    """Return the sums of values by bucket, (H, B). Deterministic on CPUs only: a GPU adds weighted counts in any order."""
    return torch.stack([torch.bincount(bucket_M, value_M, minlength=num_buckets) for value_M in value_HM])


def sorted_sums(bucket_M: Tensor, value_HM: Tensor, num_buckets: int) -> Tensor:
    """Return the same sums in an order that depends on the buckets alone, so that they are deterministic on GPUs too.

    A stable sort brings the values of a bucket together, and each run of them is summed as a segment.
    """
    # Integers: the same in any order. torch.bincount would wait for the device, and so would a check of the lengths.
    ones_M = torch.ones_like(bucket_M)
    lengths_B = bucket_M.new_zeros(num_buckets).index_add_(0, bucket_M, ones_M)
    order_M = bucket_M.argsort(stable=True)
    wide = torch.promote_types(value_HM.dtype, torch.float32)
    return torch.stack(
        [torch.segment_reduce(value_M.to(wide)[order_M], "sum", lengths=lengths_B, unsafe=True) for value_M in value_HM]
    )


def _rows_of(weight_HB: Tensor, index: Tensor) -> Tensor:
    """Return the columns of a table for an index (r, Q, K), as (r, H, Q, K)."""
    gathered: Tensor = _Gather.apply(weight_HB, index)
    return gathered.transpose(0, 1)
