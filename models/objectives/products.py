"""Matrix products into memory that is there already, in the precision that autocast asks for.

Autocast leaves alone what is told where to write. These do what it would do: where it is on, both factors are rounded to its dtype
and multiplied in that (summed in float32 inside of the product); what is written to, and added to, keeps its own precision.
"""

import torch
from torch import Tensor


def product(left_RK: Tensor, right_KC: Tensor, out_RC: Tensor) -> Tensor:
    """Write left @ right into `out_RC`, and return it."""
    if not torch.is_autocast_enabled(left_RK.device.type):
        return torch.mm(left_RK, right_KC, out=out_RC)
    return out_RC.copy_(_rounded(left_RK, right_KC))


def add_product(sum_RC: Tensor, left_RK: Tensor, right_KC: Tensor) -> Tensor:
    """Add left @ right to `sum_RC` in place, and return it."""
    if not torch.is_autocast_enabled(left_RK.device.type):
        return sum_RC.addmm_(left_RK, right_KC)
    return sum_RC.add_(_rounded(left_RK, right_KC))


def _rounded(left_RK: Tensor, right_KC: Tensor) -> Tensor:
    low = torch.get_autocast_dtype(left_RK.device.type)
    return torch.mm(left_RK.to(low), right_KC.to(low))
