"""Recognition of tables among the tensors of a module, and the parts of a tensor on this rank."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

TABLE_OWNERS = ("embeddings", "embedding_bags")  # the modules of TorchRec's collections that hold tables


@dataclass(frozen=True)
class LocalShard:
    """A part of a table, or of its optimizer's state, on this rank. It shares memory with the table."""

    tensor: Tensor
    first_row: int
    first_column: int


def local_shards(value: Tensor | ShardedTensor) -> Iterator[LocalShard]:
    """Yield the parts of a tensor on this rank: the whole tensor if it is not sharded."""
    if isinstance(value, ShardedTensor):
        for shard in value.local_shards():
            # RowWiseAdagrad's state has one number per row, and no columns.
            row, *columns = shard.metadata.shard_offsets
            yield LocalShard(shard.tensor, row, columns[0] if columns else 0)
    else:
        yield LocalShard(value, 0, 0)


def table_of(parameter: str, tables: Collection[str]) -> str | None:
    """Return the table of a parameter, or None.

    Names of tables end in `embeddings.<table>.weight` or `embedding_bags.<table>.weight`, TorchRec's convention. The projection
    of a feature may have the name of a table too, as in `events.<table>.weight`.
    """
    *_, owner, table, last = ("", "", *parameter.split("."))
    return table if last == "weight" and owner in TABLE_OWNERS and table in tables else None


def table_weights(sharded_model: nn.Module, table: str) -> dict[str, Tensor | ShardedTensor]:
    """Return the weights of a table by the name of their parameter, as the state dict has them. Empty if there is no such table.

    They are not read from the state dict itself, because TorchRec makes GPUs write all cached rows back before it builds one.
    """
    weights: dict[str, Tensor | ShardedTensor] = {
        name: weight for name, weight in sharded_model.named_parameters() if table_of(name, (table,))
    }
    module = sharded_model.module if isinstance(sharded_model, DistributedModelParallel) else sharded_model
    for path, collection in module.named_modules():
        sharded = getattr(collection, "_model_parallel_name_to_sharded_tensor", {})
        if table in sharded:
            (name,) = (name for name in weights if name.startswith(f"{path}."))
            weights[name] = sharded[table]
    return weights
