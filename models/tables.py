"""Embedding tables as TorchRec modules, before anything is sharded."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class TableSpec:
    """Name, number of rows and width of one table; its single feature has the table's name.

    replicated: every rank will hold all of it, so it is kept apart from those that are sharded.
    """

    name: str
    num_rows: int
    dim: int
    replicated: bool = False


class EmbeddingTables(nn.Module):
    """Tables that are looked up by id: an EmbeddingCollection for those of one width, since TorchRec asks for that.

    device: of the tables that are sharded later; on the meta device nothing is allocated before. Replicated ones are on the CPU.
    """

    def __init__(self, specs: list[TableSpec], device: torch.device) -> None:
        super().__init__()
        groups: dict[str, list[TableSpec]] = {}
        for spec in specs:
            kind = "replicated" if spec.replicated else "sharded"
            groups.setdefault(f"{kind}_{spec.dim}", []).append(spec)
        self.collections = nn.ModuleDict(
            {
                name: EmbeddingCollection(
                    [EmbeddingConfig(s.num_rows, s.dim, name=s.name, feature_names=[s.name]) for s in group],
                    device=torch.device("cpu") if group[0].replicated else device,
                )
                for name, group in groups.items()
            }
        )
        self._tables = {name: tuple(spec.name for spec in group) for name, group in groups.items()}

    @property
    def replicated(self) -> list[nn.Module]:
        """The collections of replicated tables."""
        return [collection for name, collection in self.collections.items() if name.startswith("replicated")]

    def forward(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By table, what is in its rows: (R, dim) for row numbers (R,) int64. All tables are asked, if for nothing."""
        found = {}
        for name, collection in self.collections.items():
            jagged = collection(lookup_request({table: rows[table] for table in self._tables[name]}))
            found.update({table: jagged[table].values() for table in self._tables[name]})
        return found


def lookup_request(rows: Mapping[str, torch.Tensor]) -> KeyedJaggedTensor:
    """Ask for rows of each table ((R,) int64) as a single bag, so that every rank has the same stride."""
    values = torch.cat(list(rows.values()))
    lengths = torch.tensor([ids.numel() for ids in rows.values()], dtype=torch.int64, device=values.device)
    # fbgemm reads the values' memory from its start, whatever their stride: a sliced tensor would be misread in silence.
    return KeyedJaggedTensor(keys=list(rows), values=values.contiguous(), lengths=lengths)
