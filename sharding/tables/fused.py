"""The tables of a sharded module whose optimizers are fused into fbgemm, and the number of updates that these correct for.

Adam and its kin divide their moments by 1 - beta^n, n the number of updates. fbgemm counts n in its look-ups, of which some update
nothing: evaluation, steps that are skipped, measurements. It is not part of any state that TorchRec saves either. So the trainer
counts the updates, keeps the number in checkpoints, and sets it before the look-up of every step, from which the update takes it.
"""

from collections.abc import Iterable
from typing import Protocol

from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn


class CountsLookups(Protocol):
    """What `set_num_updates` uses of fbgemm's SplitTableBatchedEmbeddingBagsCodegen."""

    # (1,) int64 on the module's device: what is read back into iter_cpu where that is 0.
    iter: Tensor
    # (1,) int64 on the CPU: a look-up adds one, and its backward pass corrects for the sum.
    iter_cpu: Tensor


def fused_tables(sharded_model: nn.Module) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
    """Return fbgemm's modules in a sharded one, each of which holds one table or several.

    TorchRec's sharded collections keep them in a plain list, `_lookups`, where `nn.Module.modules` does not look.
    """
    tables: dict[int, SplitTableBatchedEmbeddingBagsCodegen] = {}
    for child in sharded_model.modules():
        for lookup in (child, *getattr(child, "_lookups", ())):
            for part in lookup.modules():
                if isinstance(part, SplitTableBatchedEmbeddingBagsCodegen):
                    tables[id(part)] = part
    return list(tables.values())


def set_num_updates(tables: Iterable[CountsLookups], num_updates: int) -> None:
    """Let the next look-up be that of update `num_updates` + 1.

    fbgemm's own `set_optimizer_step` leaves `iter_cpu` as it is, and prints a number that lies on the device, which would make
    every step wait for it.
    """
    for table in tables:
        table.iter.fill_(num_updates)
        table.iter_cpu.fill_(num_updates)
