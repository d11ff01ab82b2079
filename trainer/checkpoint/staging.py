"""Copies of the tensors of a checkpoint in host memory, so that training continues while they are written.

The copies are made at one moment between two steps, so they are the state of that step. Their memory is kept for the next
checkpoint. Shards stay shards: only what this rank holds is copied.
"""

from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor

MEMORY_SHARE = 0.5  # of the free memory that copies may take at most


class Staging:
    """Host memory for the tensors of one checkpoint. On GPUs it is pinned, so that copies are fast."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._kept: dict[str, list[Tensor]] = {}

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Return whether copies fit into memory: those kept from the last time do, others may take half of what is free."""
        needed = sum(
            tensor.numel() * tensor.element_size()
            for name, value in state.items()
            for tensor in _local(value)
            if name not in self._kept
        )
        return bool(needed <= MEMORY_SHARE * psutil.virtual_memory().available)

    def copy(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the tensors. It is valid until the next call."""
        kept: dict[str, list[Tensor]] = {}
        copied = {}
        for name, value in state.items():
            buffers = [self._filled(tensor, number, name) for number, tensor in enumerate(_local(value))]
            kept[name] = buffers
            copied[name] = _like(value, buffers)
        self._kept = kept
        if self._pinned:
            torch.cuda.synchronize()
        return copied

    def _filled(self, tensor: Tensor, number: int, name: str) -> Tensor:
        """Return a kept buffer of the right size, or a new one, with the values of a tensor."""
        source = tensor.detach()
        buffers = self._kept.get(name, [])
        buffer = buffers[number] if number < len(buffers) else None
        if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
            buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=self._pinned)
        return buffer.copy_(source, non_blocking=self._pinned)


def _local(value: Any) -> list[Tensor]:
    """Return the tensors of a value that this rank holds."""
    if isinstance(value, ShardedTensor):
        return [shard.tensor for shard in value.local_shards()]
    return [value] if isinstance(value, Tensor) else []


def _like(value: Any, tensors: list[Tensor]) -> Any:
    """Return a value with other local tensors."""
    if not isinstance(value, ShardedTensor):
        return tensors[0] if tensors else value
    metadata = [shard.metadata for shard in value.local_shards()]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [Shard(tensor, entry) for tensor, entry in zip(tensors, metadata, strict=True)],
        sharded_tensor_metadata=value.metadata(),
        process_group=value._process_group,
        init_rrefs=False,
    )
