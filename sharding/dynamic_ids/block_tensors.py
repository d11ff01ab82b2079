"""Tensors that are divided into contiguous blocks over ranks, in which a checkpoint keeps arrays that ranks share otherwise.

The name, size and type of such a tensor are those of the undivided one, so a checkpoint of any number of ranks loads on any other.
With one rank it is a plain tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import ShardMetadata

from sharding.dynamic_ids.owners import route_to
from sharding.tables.local_shards import local_shards
from sharding.world import World

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """Contiguous parts of `size` numbers, one on each rank; the last ranks may have fewer or none."""

    size: int
    """Numbers of all ranks."""
    world: World
    """All ranks."""

    @property
    def width(self) -> int:
        """Return the size of the largest block."""
        return max(1, -(-self.size // self.world.world_size))

    def bounds(self, rank: int) -> tuple[int, int]:
        """Return the first number of a rank, and the one after its last."""
        return min(self.size, rank * self.width), min(self.size, (rank + 1) * self.width)

    @property
    def own_bounds(self) -> tuple[int, int]:
        """Return the bounds of this rank's block."""
        return self.bounds(self.world.rank)

    def ranks_of(self, places: Int64) -> Int64:
        """Return the rank of the block that holds each place."""
        return places // self.width

    def collect(self, places: Int64, columns: Sequence[Int64]) -> list[Int64]:
        """Return this rank's block of arrays that hold values of all ranks at given places, and zeros elsewhere. Collective.

        Args:
            places: (n,) places of this rank's values; every place is given at most once.
            columns: the values, (n,) int64 each.
        """
        first, end = self.own_bounds
        arrived, *values = route_to(self.ranks_of(places), self.world).send(places, *columns)
        blocks = []
        for column in values:
            block = np.zeros(end - first, np.int64)
            block[arrived - first] = column
            blocks.append(block)
        return blocks

    def tensor(self, block: NDArray[Any]) -> Tensor:
        """Return the tensor of all blocks, of which this rank has one. It shares the block's memory."""
        own = torch.from_numpy(block)
        world = self.world
        if world.world_size == 1:
            return own
        shards = [
            ShardMetadata([first], [end - first], f"rank:{rank}/cpu")
            for rank in range(world.world_size)
            for first, end in [self.bounds(rank)]
            if end > first
        ]
        held = [Shard(own, shards[world.rank])] if own.numel() else []
        metadata = ShardedTensorMetadata(
            shards, torch.Size([self.size]), TensorProperties.create_from_tensor(own.view(-1))
        )
        tensor: Tensor = ShardedTensor._init_from_local_shards_and_global_metadata(
            held, sharded_tensor_metadata=metadata, process_group=world.group, init_rrefs=False
        )
        return tensor

    def block_of(self, tensor: Tensor) -> NDArray[Any]:
        """Return this rank's block of a tensor that `tensor` returned, or of an undivided one."""
        first, end = self.own_bounds
        if not isinstance(tensor, ShardedTensor):
            return np.asarray(tensor[first:end].cpu())
        shards = list(local_shards(tensor))
        assert all(shard.first_row == first for shard in shards)
        own = shards[0].tensor.cpu() if shards else torch.empty(0, dtype=tensor.dtype)
        return np.asarray(own)
