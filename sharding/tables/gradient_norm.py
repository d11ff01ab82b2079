"""The norm of the gradient of table rows over all ranks.

Every rank holds the gradient of the rows that it looked up. If several ranks looked up the same row, their gradients have to be
summed before the norm, and TorchRec sums them only within the update itself. So each row has a rank that sums it for the norm:
its number modulo the world size. Rows and gradients are sent there in three collectives for all tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sharding.world import World


@dataclass(frozen=True)
class HostRows:
    """The rows of a step on the host, from which the ranks know the sizes of an exchange without waiting for their devices."""

    rows: Mapping[str, Tensor]
    """The row ids by table, (R,) int64 on the CPU, in the order of those on the device."""
    world: World
    """The ranks, for collectives of CPU tensors."""


def squared_row_norm(
    rows: Mapping[str, Tensor], gradients: Mapping[str, Tensor], world: World, host: HostRows | None = None
) -> Tensor:
    """Return the sum of squares of the gradient of all tables, float64 and the same on every rank. Collective.

    Args:
        rows: by table (R,) int64, the rows that this rank looked up; a row can occur several times.
        gradients: by table (R, dim), of its share of the loss. Tables and their order are the same on every rank.
        world: the ranks.
        host: the rows on the host, if reading a number of the device would wait for it. Sums are then rounded differently.
    """
    gathered = [(rows[table], gradient) for table, gradient in gradients.items()]
    if world.world_size > 1:
        gathered = _at_owners(gathered, world, host)
    square = torch.zeros((), dtype=torch.float64, device=world.device)
    for numbers, gradient in gathered:
        whole = _summed_by_row(numbers, gradient) if host is None else _summed_by_run(numbers, gradient)
        square += whole.double().square().sum()
    return world.sum(square)


def _summed_by_row(numbers: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of each distinct row, (distinct rows, dim)."""
    distinct, place = numbers.unique(return_inverse=True)
    return gradient.new_zeros((distinct.numel(), gradient.shape[1])).index_add_(0, place, gradient)


def _summed_by_run(numbers: Tensor, gradient: Tensor) -> Tensor:
    """Return the same, followed by zeros up to (R, dim): the number of distinct rows stays unknown to the host."""
    ordered, order = numbers.sort(stable=True)
    place = F.pad(ordered.diff() != 0, (1, 0)).cumsum(0)[: ordered.numel()]
    return torch.zeros_like(gradient).index_add_(0, place, gradient.index_select(0, order))


def _at_owners(tables: list[tuple[Tensor, Tensor]], world: World, host: HostRows | None) -> list[tuple[Tensor, Tensor]]:
    """Return the (rows, gradients) of each table that this rank sums, in the order of the ranks that sent them."""
    num_ranks = world.world_size
    on_host = [numbers for numbers, _ in tables] if host is None else list(host.rows.values())
    orders = [torch.sort(numbers % num_ranks, stable=True).indices for numbers, _ in tables]
    counts = torch.stack([torch.bincount(numbers % num_ranks, minlength=num_ranks) for numbers in on_host], dim=1)
    counting = world if host is None else host.world
    arriving = counting.exchange(counts.flatten(), [len(tables)] * num_ranks, [len(tables)] * num_ranks).view_as(counts)
    leaving_counts = counts.tolist()
    arriving_counts = arriving.tolist()

    def sent(values: list[Tensor]) -> list[Tensor]:
        """Exchange values in one collective for all tables. Pieces are ordered by rank, and within a rank by table."""
        widths = [value.shape[1] for value in values]
        by_table = [
            value[order].split([of_rank[n] for of_rank in leaving_counts])
            for n, (value, order) in enumerate(zip(values, orders, strict=True))
        ]
        leaving = torch.cat([pieces[rank].flatten() for rank in range(num_ranks) for pieces in by_table])
        sizes = [
            [[count * width for count, width in zip(of_rank, widths, strict=True)] for of_rank in table_counts]
            for table_counts in (leaving_counts, arriving_counts)
        ]
        arrived = world.exchange(leaving, *([sum(of_rank) for of_rank in side] for side in sizes))
        pieces = arrived.split([size for of_rank in sizes[1] for size in of_rank])
        return [torch.cat(pieces[n :: len(values)]).view(-1, width) for n, width in enumerate(widths)]

    numbers = sent([numbers[:, None] for numbers, _ in tables])
    gradients = sent([gradient for _, gradient in tables])
    return [(number.flatten(), gradient) for number, gradient in zip(numbers, gradients, strict=True)]
