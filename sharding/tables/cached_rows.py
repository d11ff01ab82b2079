"""Writes of single rows into a table of which a GPU may cache rows.

With kernel = "fused_uvm_caching" the rows of a table are in host memory, and the GPU has a cache of those that were looked up last.
A cached row is newer than the row in host memory, which it replaces when it leaves the cache. fbgemm can write all cached rows back
(`flush`) and empty the cache (`reset_cache_states`), which copies the whole cache and reads all of its rows again. A few rows are
written to both places instead: to host memory, and to the cache if they are in it. All other cached rows stay.

The host waits for nothing. Optimizer state is never cached.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from fbgemm_gpu.split_embedding_configs import EmbeddingLocation
from torch import Tensor


class CachesRows(Protocol):
    """The attributes of fbgemm's SplitTableBatchedEmbeddingBagsCodegen that `write_rows` uses."""

    # (slots, widest row): the cached rows. Empty without a cache.
    lxu_cache_weights: Tensor
    # (sets, slots of a set) int64: the number of the row in each slot, -1 in empty ones.
    lxu_cache_state: Tensor
    # (features + 1,) int64: what to add to a row of the table of each feature to number the rows of all tables.
    cache_hash_size_cumsum: Tensor
    # the number of rows of all tables, which is the number of none.
    total_cache_hash_size: int
    # the table of each feature.
    feature_table_map: list[int]
    # the EmbeddingLocation of each table.
    weights_physical_placements: list[int]

    def split_embedding_weights(self) -> list[Tensor]:
        """Return the weights of each table, (rows, width), in host memory if they are cached. Does not flush the cache."""


def write_rows(modules: Iterable[CachesRows], weights: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write rows of a table, in its memory and wherever a GPU caches them.

    Args:
        modules: the modules of fbgemm, one of which may hold the table.
        weights: (rows of the table, width), the memory of the table.
        rows: (R,) int64 on the CPU, unique rows of the table.
        values: (R, width), their new values, on the CPU.
    """
    if not rows.numel():
        return
    rows = _from_host(rows, weights.device)
    values = _from_host(values.to(weights.dtype), weights.device)
    weights.index_copy_(0, rows, values)
    for module in modules:
        if not module.lxu_cache_weights.numel():
            continue
        for number, own in enumerate(module.split_embedding_weights()):
            is_cached = module.weights_physical_placements[number] == EmbeddingLocation.MANAGED_CACHING
            if is_cached and own.data_ptr() == weights.data_ptr():
                _write_cached(module, number, rows, values)


def _write_cached(module: CachesRows, table: int, rows: Tensor, values: Tensor) -> None:
    """Write the rows that are in the cache of a module. `table`: its number within the module."""
    feature = module.feature_table_map.index(table)
    slots = slots_of(module, module.cache_hash_size_cumsum[feature] + rows)
    is_here = slots >= 0
    # The host does not know which rows are cached, and must not wait for that. A row that is not repeats the write of the first one
    # that is. If none is, the first slot keeps its values.
    first = is_here.to(torch.int64).argmax()
    source = torch.where(is_here, torch.arange(rows.numel(), device=rows.device), first)
    slots = slots.index_select(0, source).clamp(min=0)
    cache = module.lxu_cache_weights[:, : values.shape[1]]
    written = torch.where(is_here.any(), values.index_select(0, source).to(cache.dtype), cache.index_select(0, slots))
    cache.index_copy_(0, slots, written)


def slots_of(module: CachesRows, numbers: Tensor) -> Tensor:
    """Return the slots in the cache of rows that are numbered over all tables of a module, (R,) int64; -1: not cached."""
    slots: Tensor = torch.ops.fbgemm.lxu_cache_lookup(numbers, module.lxu_cache_state, module.total_cache_hash_size)
    return slots.to(torch.int64)


def _from_host(numbers: Tensor, device: torch.device) -> Tensor:
    """Return numbers of the CPU on the device. A GPU copies them from pinned memory in its own time."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)
