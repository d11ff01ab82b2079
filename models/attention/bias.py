"""What scores get from how far apart two events are: in places, and in time.

Each bias gives a number per head for every pair of a query and a key; learned tables by the distance, by buckets of it, or a
learned slope. Shapes: R rows, Q queries, K keys, H heads.
"""

import math

import torch
from torch import Tensor, nn

from models.attention.config import NUM_POSITION_BUCKETS, NUM_TIME_BUCKETS

TIME_BUCKET_BASE = math.exp(0.301)  # each bucket is 1.35 times as wide as the one before, as in HSTU's published code


class PositionBias(nn.Module):
    """Of the distance of places: "exact" (T5 without buckets, HSTU), "bucketed" (Raffel et al. 2020, arXiv:1910.10683,
    section 2.1) or "functional" (-slope x distance; Press et al. 2022, arXiv:2108.12409, with learned slopes)."""

    def __init__(self, form: str, num_heads: int, max_history: int, bidirectional: bool) -> None:
        super().__init__()
        self.form, self.max_history, self.bidirectional = form, max_history, bidirectional
        sides = 2 if bidirectional else 1
        match form:
            case "exact":
                self.weight = nn.Parameter(torch.zeros(num_heads, sides * max_history))
            case "bucketed":
                self.weight = nn.Parameter(torch.zeros(num_heads, sides * min(NUM_POSITION_BUCKETS, max_history)))
            case _:
                self.slope = nn.Parameter(torch.zeros(num_heads))

    def forward(self, distance: Tensor) -> Tensor:
        """(r, H, Q, K) for distances (r, Q, K) int64."""
        if self.form == "functional":
            return -self.slope[:, None, None] * distance.abs()[:, None].to(self.slope.dtype)
        return _rows_of(self.weight, self.buckets(distance))

    def buckets(self, distance: Tensor) -> Tensor:
        """Which column of the table a distance has; int64."""
        side = self.weight.shape[1] // (2 if self.bidirectional else 1)
        far = distance.abs() if self.bidirectional else distance.clamp(min=0)
        if self.form == "bucketed":
            # The nearer half of the buckets holds one distance each; the others grow to hold the longest history.
            exact = max(1, side // 2)
            growth = (side - exact) / max(1e-9, math.log(max(self.max_history, exact + 1) / exact))
            wide = exact + ((far.clamp(min=1).double() / exact).log() * growth).long()
            far = torch.where(far < exact, far, wide)
        bucket = far.clamp(max=side - 1)
        return bucket + side * (distance < 0) if self.bidirectional else bucket

    @torch.no_grad()
    def initialize(self) -> None:
        """Slopes start in a geometric series over heads, from 1/2 at most to 1/256 (Press et al. 2022, section 3)."""
        if self.form == "functional":
            heads = self.slope.numel()
            self.slope.copy_(torch.exp2(-8.0 * torch.arange(1, heads + 1, dtype=self.slope.dtype) / heads))


class TimeBias(nn.Module):
    """Of the age of the key: a number per bucket of log seconds (Zhai et al. 2024, arXiv:2402.17152, appendix), or
    -factor x log(1 + age)."""

    def __init__(self, form: str, num_heads: int) -> None:
        super().__init__()
        self.form = form
        if form == "bucketed":
            self.weight = nn.Parameter(torch.zeros(num_heads, NUM_TIME_BUCKETS))
        else:
            self.slope = nn.Parameter(torch.zeros(num_heads))

    def forward(self, prepared: Tensor) -> Tensor:
        """(R, H, Q, K) for what `prepare_ages` made of ages (R, Q, K)."""
        if self.form == "functional":
            return -self.slope[:, None, None] * prepared[:, None].to(self.slope.dtype)
        return _rows_of(self.weight, prepared)

    @torch.no_grad()
    def initialize(self) -> None:
        """No preference for recent events before something is learned."""
        if self.form == "functional":
            self.slope.zero_()


def prepare_ages(age: Tensor, form: str) -> Tensor:
    """What a bias of this form looks at: buckets, int32, or the log of one plus the age, float64.

    age: int64 seconds, not negative. The same for all layers, and made once because logarithms are dear.
    """
    if form == "functional":
        return age.double().log1p()
    return torch.bucketize(age, time_bounds(age.device), right=True, out_int32=True)


def time_buckets(age: Tensor) -> Tensor:
    """Which bucket an age falls in: floor(log(max(1, age)) / log(base)), at most the last; int64, exact for every age."""
    return torch.bucketize(age, time_bounds(age.device), right=True)


def time_buckets_by_guess(age: Tensor, bounds: Tensor) -> Tensor:
    """The same element by element, for kernels that cannot search. bounds: what `time_bounds` gave.

    A logarithm in float32 is off by one bucket at most, and only next to a bound.
    """
    last = NUM_TIME_BUCKETS - 1
    guess = (age.clamp(min=1).float().log() / math.log(TIME_BUCKET_BASE)).long().clamp(max=last)
    too_low = (guess < last) & (age >= bounds[guess.clamp(max=last - 1)])
    too_high = (guess > 0) & (age < bounds[(guess - 1).clamp(min=0)])
    return guess + too_low.long() - too_high.long()


def time_bounds(device: torch.device) -> Tensor:
    """(NUM_TIME_BUCKETS - 1,) int64: the lowest age of each bucket but the first. Some of the first buckets are empty."""
    return torch.tensor([math.ceil(TIME_BUCKET_BASE**bucket) for bucket in range(1, NUM_TIME_BUCKETS)], device=device)


class _Gather(torch.autograd.Function):
    """weight[:, index], with a backward that counts: index_select's would add millions of gradients into a few entries."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight_HB: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_buckets = weight_HB.shape[1]  # type: ignore[attr-defined]
        return weight_HB.index_select(1, index.reshape(-1)).view(weight_HB.shape[0], *index.shape)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors  # type: ignore[attr-defined]
        flat, size = index.reshape(-1), ctx.num_buckets  # type: ignore[attr-defined]
        grad = grad_outputs[0].reshape(grad_outputs[0].shape[0], -1)
        sums = counted_sums(flat, grad, size) if flat.device.type == "cpu" else sorted_sums(flat, grad, size)
        return sums.to(grad.dtype), None


def counted_sums(bucket_M: Tensor, value_HM: Tensor, num_buckets: int) -> Tensor:
    """Return the sums of values by bucket, (H, B). Deterministic on CPUs only: a GPU adds weighted counts in any order."""
    return torch.stack([torch.bincount(bucket_M, value_M, minlength=num_buckets) for value_M in value_HM])


def sorted_sums(bucket_M: Tensor, value_HM: Tensor, num_buckets: int) -> Tensor:
    """Return the same sums in an order that depends on the buckets alone, so that they are deterministic on GPUs as well.

    A stable sort brings the values of a bucket together, and each run of them is summed as a segment.
    """
    lengths_B = torch.bincount(bucket_M, minlength=num_buckets)  # whole numbers: the same in any order
    order_M = bucket_M.argsort(stable=True)
    wide = torch.promote_types(value_HM.dtype, torch.float32)
    return torch.stack(
        [torch.segment_reduce(value_M.to(wide)[order_M], "sum", lengths=lengths_B) for value_M in value_HM]
    )


def _rows_of(weight_HB: Tensor, index: Tensor) -> Tensor:
    """(r, H, Q, K) for index (r, Q, K)."""
    gathered: Tensor = _Gather.apply(weight_HB, index)
    return gathered.transpose(0, 1)
