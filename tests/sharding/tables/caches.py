"""Caches of table rows as GPUs have them, on a CPU."""

from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbeddingLocation
from torch import Tensor

UNTOUCHED = -7.0


def give_cache(module: Any, held: Tensor, width: int) -> Tensor:
    """Give a module of fbgemm, with all tables in host memory, a cache of some rows. Return the cached rows, (slots, width).

    held: (slots,) the numbers of the rows in the cache, over all tables of the module; -1 in empty slots.
    """
    module.lxu_cache_weights = torch.full((held.numel(), width), UNTOUCHED)
    module.lxu_cache_state = held[None, :]
    sizes = [own.shape[0] for own in module.split_embedding_weights()]
    starts = torch.tensor([0, *sizes]).cumsum(0)
    module.cache_hash_size_cumsum = torch.cat((starts[module.feature_table_map], starts[-1:]))
    module.weights_physical_placements = [EmbeddingLocation.MANAGED_CACHING.value] * len(sizes)
    if hasattr(module, "weights_host"):  # where a CPU has all rows, and where a GPU with a cache has them
        module.weights_uvm = module.weights_host.detach()
    cache: Tensor = module.lxu_cache_weights
    return cache


def cache_slots(module: Any, numbers: Tensor) -> Tensor:
    """Return what `slots_of` finds on a GPU."""
    match = module.lxu_cache_state.flatten()[None, :] == numbers[:, None]
    return torch.where(match.any(dim=1), match.to(torch.int64).argmax(dim=1), -1)
