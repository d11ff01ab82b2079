"""Embedding tables as TorchRec modules, before anything is sharded."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class TableSpec:
    """Name, number of rows and width of one table; its single feature has the table's name."""

    name: str
    num_rows: int
    dim: int


def build_tables(specs: list[TableSpec], device: torch.device) -> EmbeddingCollection:
    """One EmbeddingCollection of all tables. On the meta device nothing is allocated before sharding."""
    configs = [
        EmbeddingConfig(name=s.name, embedding_dim=s.dim, num_embeddings=s.num_rows, feature_names=[s.name])
        for s in specs
    ]
    return EmbeddingCollection(tables=configs, device=device)


def lookup_request(rows: Mapping[str, torch.Tensor]) -> KeyedJaggedTensor:
    """Ask for rows of each table ((R,) int64) as a single bag, so that every rank has the same stride."""
    values = torch.cat(list(rows.values()))
    lengths = torch.tensor([ids.numel() for ids in rows.values()], dtype=torch.int64, device=values.device)
    # fbgemm reads the values' memory from its start, whatever their stride: a sliced tensor would be misread in silence.
    return KeyedJaggedTensor(keys=list(rows), values=values.contiguous(), lengths=lengths)
