"""The norm of the gradient of table rows, as if all ranks were one.

Every rank holds the gradient of the rows that it looked up. Where several ranks looked up the same row, their gradients have to be
added before the norm counts them, and TorchRec adds them only within the update itself. So each row has a rank that adds it
up for the norm, its number modulo the world size: rows and gradients travel there once more, in three collectives for all tables.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sharding.world import World


def squared_row_norm(rows: Mapping[str, Tensor], gradients: Mapping[str, Tensor], world: World) -> Tensor:
    """Sum of squares of the gradient of all tables, float64 and the same on every rank. Collective.

    rows: by table (R,) int64, what this rank looked up; gradients: by table (R, dim), of its share of the loss. The tables
    and their order are the same on every rank; a row may come several times.
    """
    gathered = [(rows[table], gradient) for table, gradient in gradients.items()]
    if world.world_size > 1:
        gathered = _at_owners(gathered, world)
    square = torch.zeros((), dtype=torch.float64, device=world.device)
    for numbers, gradient in gathered:
        distinct, place = numbers.unique(return_inverse=True)
        whole = gradient.new_zeros((distinct.numel(), gradient.shape[1])).index_add_(0, place, gradient)
        square += whole.double().square().sum()
    return world.sum(square)


def _at_owners(tables: list[tuple[Tensor, Tensor]], world: World) -> list[tuple[Tensor, Tensor]]:
    """Of each table the (rows, gradients) that this rank adds up, in the order of the ranks that they come from."""
    num_ranks = world.world_size
    orders = [torch.sort(numbers % num_ranks, stable=True).indices for numbers, _ in tables]
    counts = torch.stack([torch.bincount(numbers % num_ranks, minlength=num_ranks) for numbers, _ in tables], dim=1)
    arriving = world.exchange(counts.flatten(), [len(tables)] * num_ranks, [len(tables)] * num_ranks).view_as(counts)
    leaving_counts, arriving_counts = counts.tolist(), arriving.tolist()

    def travelled(values: list[Tensor]) -> list[Tensor]:
        """One collective for all tables: pieces lie by rank, and within a rank by table."""
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

    numbers = travelled([numbers[:, None] for numbers, _ in tables])
    gradients = travelled([gradient for _, gradient in tables])
    return [(number.flatten(), gradient) for number, gradient in zip(numbers, gradients, strict=True)]
