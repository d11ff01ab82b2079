"""Number of bytes that this rank sends to others in collectives, counted where torch.distributed is called."""

from collections.abc import Callable, Iterator
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
def counted_traffic(sums: bool = False) -> Iterator[Traffic]:
    """Count what all threads of this process exchange in all-to-alls.

    The bytes of other collectives depend on the backend's algorithm, so they raise; with `sums`, those that add up bags on their
    way count as if each rank sent each other one what that needs (a ring sends as much), and gathers likewise.
    """
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

    def counting(collective: Callable[..., Any], share: Callable[[int], float]) -> Callable[..., Any]:
        """share: of its input that leaves, with so many ranks."""

        def count(output: Tensor, input: Tensor, *arguments: Any, **named: Any) -> Any:
            leaves = share(dist.get_world_size(named.get("group")))
            traffic.sent_bytes += round(leaves * input.numel() * input.element_size())
            traffic.num_calls += 1
            return collective(output, input, *arguments, **named)

        return count

    others = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all")
    patched: dict[str, Any] = {"all_to_all_single": exchange, **dict.fromkeys(others, refuse)}
    if sums:
        patched["reduce_scatter_tensor"] = counting(dist.reduce_scatter_tensor, lambda world: (world - 1) / world)
        patched["all_gather_into_tensor"] = counting(dist.all_gather_into_tensor, lambda world: world - 1)
        patched["all_reduce"] = dist.all_reduce  # of one integer
    with patch.multiple(dist, **patched):
        yield traffic
