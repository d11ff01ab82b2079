"""The difference between a device on which the host computes and one that it queues work for.

On a CPU reading a number costs nothing, and small pieces of work stay in a cache. On an accelerator reading a number waits for
all queued work, and small pieces of work cost more to launch than to compute. Code that chooses between the two asks `is_host`,
so that tests can run the choices for accelerators on a CPU.
"""

import torch
from torch import Tensor


def is_host(device: torch.device) -> bool:
    """Return whether the host itself computes on the device."""
    return device.type == "cpu"


def from_host(numbers: Tensor, device: torch.device) -> Tensor:
    """Return numbers of the CPU on the device. The host does not wait: a GPU copies them from pinned memory in its own time."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)


def host_uses_bfloat16() -> bool:
    """Return whether autocast computes the matrix products of the host in bfloat16."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def seed(device: torch.device, number: int) -> None:
    """Seed the generator of a device. torch.manual_seed writes three stack traces first, which takes 2 ms without a GPU."""
    if is_host(device):
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


def all_finite(numbers: Tensor) -> Tensor:
    """Return () bool: whether no number is infinite or NaN. Least and largest are found in one pass, and NaN is in both."""
    if not numbers.numel():
        return torch.ones((), dtype=torch.bool, device=numbers.device)
    return torch.stack(torch.aminmax(numbers)).isfinite().all()
