"""The tables of a sharded module with optimizers fused into fbgemm, and the number of updates for their bias correction.

Adam and related optimizers divide their moments by 1 - beta^n, with n the number of updates. fbgemm counts n in its look-ups,
but some look-ups update nothing: evaluation, skipped steps, measurements. The state that TorchRec saves does not contain it
either. So the trainer counts the updates, keeps the number in checkpoints, and sets it before the look-up of every step, for
the update.
"""

from collections.abc import Iterable
from typing import Protocol

from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn


class CountsLookups(Protocol):
    """The attributes of fbgemm's SplitTableBatchedEmbeddingBagsCodegen that `set_num_updates` uses."""

    # (1,) int64 on the module's device: read back into iter_cpu if that is 0.
    iter: Tensor
    # (1,) int64 on the CPU: a look-up adds one, and its backward pass corrects for the sum.
    iter_cpu: Tensor


def fused_tables(sharded_model: nn.Module) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
    """Return the modules of fbgemm in a sharded module, each of which holds one or more tables.

    TorchRec's sharded collections keep them in a plain list, `_lookups`, which `nn.Module.modules` does not visit.
    """
    tables: dict[int, SplitTableBatchedEmbeddingBagsCodegen] = {}
    for child in sharded_model.modules():
        for lookup in (child, *getattr(child, "_lookups", ())):
            for part in lookup.modules():
                if isinstance(part, SplitTableBatchedEmbeddingBagsCodegen):
                    tables[id(part)] = part
    return list(tables.values())


def set_num_updates(tables: Iterable[CountsLookups], num_updates: int) -> None:
    """Set the counters so that the next look-up is that of update `num_updates` + 1.

    fbgemm's own `set_optimizer_step` does not change `iter_cpu`, and prints a number on the device, for which every step would
    wait.
    """
    for table in tables:
        table.iter.fill_(num_updates)
        table.iter_cpu.fill_(num_updates)
