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
