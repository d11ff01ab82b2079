"""The way of a batch from the host to a device: all its tensors in one copy.

A batch consists of dozens of small tensors. A copy of each would cost a launch, and would make the host wait, because their memory
is not pinned. Here the host writes them into one pinned buffer, which is copied on a stream of its own while the device still
computes. Every call has its own buffer, and torch reuses pinned memory only after it was copied. So the next batch may be packed
while the previous one is still being copied.

The invariant: every tensor on the device has the bits, the dtype and the shape of that on the host, and tensors that were one
object still are.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Content = TypeVar("Content")
ALIGNMENT = 16  # bytes; views of another dtype begin at a multiple of its size


@dataclass(frozen=True)
class Piece:
    """The place of a tensor in the buffer."""

    first: int
    """The first byte."""
    dtype: torch.dtype
    """The dtype."""
    shape: torch.Size
    """The shape."""

    @property
    def num_bytes(self) -> int:
        """Return the number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def to_device(batch: Content, device: torch.device) -> Content:
    """Return a batch with all its tensors on the device. Those that were on the CPU are views of one tensor.

    batch: dataclasses, mappings and tuples of tensors and of plain values, which stay as they are.
    """
    tensors = [tensor for tensor in tensors_in(batch) if tensor.device.type == "cpu"]
    pieces, num_bytes = places_of(tensors)
    buffer = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    pack(tensors, pieces, buffer)
    moved = iter(unpack(_copied(buffer, device), pieces))
    return with_tensors(batch, lambda tensor: next(moved) if tensor.device.type == "cpu" else tensor.to(device))


def tensors_in(content: Any) -> list[Tensor]:
    """Return the distinct tensors of a batch, in the order in which `with_tensors` replaces them."""
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    with_tensors(content, note)
    return tensors


def with_tensors(content: Content, function: Callable[[Tensor], Tensor]) -> Content:
    """Return a batch in which each tensor is replaced by the result of `function`, which is called once for each tensor."""
    results: dict[int, Tensor] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in results:
                results[id(value)] = function(value)
            return results[id(value)]
        if isinstance(value, Mapping):
            return {name: replaced(entry) for name, entry in value.items()}
        if isinstance(value, tuple):
            return tuple(replaced(entry) for entry in value)
        if not is_dataclass(value) or isinstance(value, type):
            return value
        entries = {field.name: getattr(value, field.name) for field in fields(value)}
        changed = {name: replaced(entry) for name, entry in entries.items()}
        return replace(value, **changed) if any(changed[name] is not entries[name] for name in entries) else value

    result: Content = replaced(content)
    return result


def places_of(tensors: list[Tensor]) -> tuple[list[Piece], int]:
    """Return the places of tensors in a buffer, and the size of the buffer in bytes."""
    pieces = []
    end = 0
    for tensor in tensors:
        pieces.append(Piece(end, tensor.dtype, tensor.shape))
        end += -(-pieces[-1].num_bytes // ALIGNMENT) * ALIGNMENT
    return pieces, end


def pack(tensors: list[Tensor], pieces: list[Piece], buffer: Tensor) -> None:
    """Write tensors to their places in a buffer of bytes. All are on the CPU."""
    for tensor, view in zip(tensors, unpack(buffer, pieces), strict=True):
        view.copy_(tensor)


def unpack(buffer: Tensor, pieces: list[Piece]) -> list[Tensor]:
    """Return the tensors at these places of a buffer of bytes, as views of it."""
    return [buffer[piece.first : piece.first + piece.num_bytes].view(piece.dtype).view(piece.shape) for piece in pieces]


def _copied(buffer: Tensor, device: torch.device) -> Tensor:
    """Return the buffer on the device. Later work of the device waits for it, the host does not."""
    if device.type != "cuda":
        return buffer.to(device)
    stream = _copying(device)
    with torch.cuda.stream(stream):
        copied = buffer.to(device, non_blocking=True)
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(stream)
    copied.record_stream(computing)  # its memory was allocated on the other stream
    return copied


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of copies to a GPU."""
    return torch.cuda.Stream(device)
