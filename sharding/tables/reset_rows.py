"""Resets rows of a table to their initial state on all ranks: initial weights, and zero optimizer state.

A row that passes from one id to another must keep neither weights nor optimizer state. The new weights depend on (seed, table,
row, generation) alone, so they are the same under every plan, and differ between generations.
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
    """Make GPUs that cache rows of host memory read them again. The state dict has already written their caches back."""
    for table in fused_tables(sharded_model):
        table.reset_cache_states()


def _rows_in(shard: LocalShard, rows: Tensor) -> Tensor:
    return (rows >= shard.first_row) & (rows < shard.first_row + shard.tensor.shape[0])


def _local(shard: LocalShard, rows: Tensor) -> Tensor:
    """Return the places of global row numbers in the shard, on its device."""
    return (rows - shard.first_row).to(shard.tensor.device)
