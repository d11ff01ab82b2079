"""Resets rows of a table to their initial state on all ranks: initial weights, and zero optimizer state.

A row that passes from one id to another must keep neither weights nor optimizer state. The new weights depend on (seed, table,
row, generation) alone, so they are the same under every plan, and differ between generations. Only these rows are written, also
where a GPU caches rows of host memory (sharding/tables/cached_rows.py).
"""

import torch
from torch import Tensor, nn

from sharding.tables.cached_rows import write_rows
from sharding.tables.fused import fused_tables
from sharding.tables.initialize import initial_weights
from sharding.tables.local_shards import LocalShard, local_shards, table_weights
from sharding.tables.optimizers import Optimizers


@torch.no_grad()
def reset_rows(
    sharded_model: nn.Module,
    optimizers: Optimizers,
    table: str,
    rows: Tensor,
    generations: Tensor,
    seed: int,
    std: float,
) -> None:
    """Set rows of `table` to their initial weights, and their state in the fused or dense optimizer to zero.

    Zero is the initial state of SGD, Adagrad, RowWiseAdagrad and Adam. Step numbers that a whole table shares (Adam's bias
    correction) do not change. Raises KeyError if `sharded_model` has no such table.

    Args:
        sharded_model: the model.
        optimizers: its optimizers.
        table: name of the table.
        rows: (R,) int64 on the CPU, unique and the same on every rank, which resets those it holds.
        generations: (R,) int64 on the CPU, of the rows.
        seed: that of `initialize_tables`.
        std: that of `initialize_tables`.
    """
    if not rows.numel():
        return
    weights = table_weights(sharded_model, table)
    if not weights:
        raise KeyError(f"no table {table} among the module's parameters")
    fused = fused_tables(sharded_model)
    for name, value in weights.items():
        for shard in local_shards(value):
            here = _rows_in(shard, rows)
            columns = range(shard.first_column, shard.first_column + shard.tensor.shape[1])
            fresh = initial_weights(seed, table, rows[here], generations[here], columns, value.shape[1], std)
            write_rows(fused, shard.tensor, rows[here] - shard.first_row, fresh)
        for slot in optimizers.slots_of(name).values():
            if slot.dim() > 0:
                for shard in local_shards(slot):
                    here = _rows_in(shard, rows)
                    zeros = torch.zeros((int(here.sum()), *shard.tensor.shape[1:]))
                    write_rows((), shard.tensor, rows[here] - shard.first_row, zeros)


def _rows_in(shard: LocalShard, rows: Tensor) -> Tensor:
    return (rows >= shard.first_row) & (rows < shard.first_row + shard.tensor.shape[0])
