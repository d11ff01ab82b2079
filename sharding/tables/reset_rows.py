"""Rows of a table as if they had never been trained, wherever they lie: initial weights, and no memory in the optimizer.

A row that passes from one id to another must carry over neither weights nor optimizer state. What a row is reset to depends
on (seed, table, row, generation) alone, so that it is the same under every plan, and not the same twice.
"""

import torch
from torch import Tensor, nn

from sharding.tables.fused import fused_tables
from sharding.tables.initialize import initial_weights
from sharding.tables.local_shards import LocalShard, local_shards, table_of
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
    """Give rows of `table` their initial weights, and zero their state in the fused or dense optimizer.

    rows, generations: (R,) int64 on the CPU, distinct rows, the same on every rank, each of which resets what it holds.
    `seed` and `std` are those that the table was initialised with. State is zeroed because that is how SGD, Adagrad,
    RowWiseAdagrad and Adam begin; numbers of steps that a whole table shares (Adam's bias correction) stay as they are.

    Raises KeyError if `sharded_model` has no such table.
    """
    if not rows.numel():
        return
    weights = {name: value for name, value in sharded_model.state_dict().items() if table_of(name, (table,))}
    if not weights:
        raise KeyError(f"no table {table} among the module's parameters")
    states = optimizers.combined.state_dict()["state"]
    for name, value in weights.items():
        for shard in local_shards(value):
            here = _rows_in(shard, rows)
            columns = range(shard.first_column, shard.first_column + shard.tensor.shape[1])
            fresh = initial_weights(seed, table, rows[here], generations[here], columns, value.shape[1], std)
            shard.tensor[_local(shard, rows[here])] = fresh.to(shard.tensor)
        for slot in states.get(name, {}).values():
            if slot.dim() > 0:
                for shard in local_shards(slot):
                    shard.tensor[_local(shard, rows[_rows_in(shard, rows)])] = 0
    _forget_cached_rows(sharded_model)


def _forget_cached_rows(sharded_model: nn.Module) -> None:
    """Make GPUs that cache rows of host memory read them anew; asking for the state dict has written theirs back before."""
    for table in fused_tables(sharded_model):
        table.reset_cache_states()


def _rows_in(shard: LocalShard, rows: Tensor) -> Tensor:
    return (rows >= shard.first_row) & (rows < shard.first_row + shard.tensor.shape[0])


def _local(shard: LocalShard, rows: Tensor) -> Tensor:
    """Global row numbers as places in the shard, on its device."""
    return (rows - shard.first_row).to(shard.tensor.device)
