"""How many bytes this rank sends to others in collectives, counted where torch.distributed is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor


@dataclass
class Traffic:
    """sent_bytes: of tensors that left for other ranks; num_calls: collectives."""

    sent_bytes: int = 0
    num_calls: int = 0


@contextmanager
def counted_traffic() -> Iterator[Traffic]:
    """Count what all threads of this process exchange in all-to-alls. Other collectives raise, since their bytes depend on the
    backend's algorithm."""
    traffic = Traffic()
    whole = dist.all_to_all_single

    def exchange(
        output: Tensor,
        input: Tensor,
        output_split_sizes: list[int] | None = None,
        input_split_sizes: list[int] | None = None,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        stays = input.shape[0] // world if not input_split_sizes else input_split_sizes[rank]
        row = input.numel() // max(1, input.shape[0])
        traffic.sent_bytes += (input.shape[0] - stays) * row * input.element_size()
        traffic.num_calls += 1
        return whole(output, input, output_split_sizes, input_split_sizes, group, async_op)

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise NotImplementedError("only all-to-alls are counted")

    others = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all")
    with patch.multiple(dist, all_to_all_single=exchange, **dict.fromkeys(others, refuse)):
        yield traffic
