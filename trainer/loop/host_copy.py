"""Numbers of a device on their way to the host."""

import torch
from torch import Tensor


class HostCopy:
    """A copy of numbers that the device makes in its own time. Work that is queued later does not delay it.

    numbers: on any device, of any shape.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._host = numbers
        if numbers.device.type == "cuda":
            # Only a copy into pinned memory leaves the host free until `wait`.
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[float]:
        """Wait for the copy, and return its numbers in one list. On a CPU there is nothing to wait for."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._host.numpy().ravel().tolist()
        return numbers
