"""Matrix products into allocated memory, in the precision of autocast.

Autocast does not apply to products with an output argument, and it rounds the output of other products: in bfloat16, scores
between 16 and 32 would become multiples of an eighth. Here no score is rounded. Under autocast, GPUs round both factors to its
dtype, sum in float32 and write float32. CPUs have no such product: they compute scores in float32, and products of gradients in
autocast's dtype, with a rounded output that is added to a tensor of its own precision.
"""

import torch
from torch import Tensor


def score_product(left_RK: Tensor, right_KC: Tensor, out_RC: Tensor) -> Tensor:
    """Write left @ right into `out_RC` and return it. Every score keeps the precision of `out_RC`."""
    low = _low_dtype(out_RC)
    if low is None or out_RC.device.type == "cpu":
        return torch.mm(left_RK, right_KC, out=out_RC)
    return _mixed_product(left_RK, right_KC, low, out_RC)


def product(left_RK: Tensor, right_KC: Tensor, out_RC: Tensor) -> Tensor:
    """Write left @ right into `out_RC` and return it. Not for scores: under autocast a CPU rounds the result."""
    low = _low_dtype(out_RC)
    if low is None:
        return torch.mm(left_RK, right_KC, out=out_RC)
    if out_RC.device.type == "cpu":
        return out_RC.copy_(torch.mm(left_RK.to(low), right_KC.to(low)))
    return _mixed_product(left_RK, right_KC, low, out_RC)


def add_product(sum_RC: Tensor, left_RK: Tensor, right_KC: Tensor) -> Tensor:
    """Add left @ right to `sum_RC` in place and return it. Not for scores: under autocast a CPU rounds the summand."""
    low = _low_dtype(sum_RC)
    if low is None:
        return sum_RC.addmm_(left_RK, right_KC)
    if sum_RC.device.type == "cpu":
        return sum_RC.add_(torch.mm(left_RK.to(low), right_KC.to(low)))
    return sum_RC.add_(_mixed_product(left_RK, right_KC, low, torch.empty_like(sum_RC)))


def _low_dtype(out: Tensor) -> torch.dtype | None:
    """Return the dtype to which factors are rounded.

    It is None if autocast is off, or if the result is float64, to which autocast does not apply.
    """
    device = out.device.type
    if out.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _mixed_product(left_RK: Tensor, right_KC: Tensor, low: torch.dtype, out_RC: Tensor) -> Tensor:
    """Multiply factors in `low`, with sums and result in float32. CPUs do not support it."""
    return torch.mm(left_RK.to(low), right_KC.to(low), out_dtype=torch.float32, out=out_RC)
