"""Embedding tables as TorchRec modules, before anything is sharded."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.features.bags import Bags, Pooling, joined_bags, no_bags

NO_BAGS: Mapping[str, Bags] = {}


@dataclass(frozen=True)
class TableSpec:
    """Name, number of rows and width of one table; its single feature has the table's name.

    replicated: every rank will hold all of it, so it is kept apart from those that are sharded. bags: the names of the bags that
    are looked up in it ("values.NAME", of one feature of items), none if it is looked up by row; pooling: what becomes of them.
    """

    name: str
    num_rows: int
    dim: int
    replicated: bool = False
    bags: tuple[str, ...] = ()
    pooling: Pooling = "mean"


class EmbeddingTables(nn.Module):
    """Tables that are looked up by id: an EmbeddingCollection for those of one width, since TorchRec asks for that; and an
    EmbeddingBagCollection for those whose bags have the same owners, since it wants equally many bags of each.

    device: of the tables that are sharded later; on the meta device nothing is allocated before. Replicated ones are on the CPU,
    but for those of bags.
    """

    def __init__(self, specs: list[TableSpec], device: torch.device) -> None:
        super().__init__()
        groups: dict[str, list[TableSpec]] = {}
        for spec in specs:
            groups.setdefault(_group_of(spec), []).append(spec)
        self.collections = nn.ModuleDict(
            {
                name: _bag_collection(group, device)
                if group[0].bags
                else EmbeddingCollection(
                    [EmbeddingConfig(s.num_rows, s.dim, name=s.name, feature_names=[s.name]) for s in group],
                    device=torch.device("cpu") if group[0].replicated else device,
                )
                for name, group in groups.items()
            }
        )
        self._tables = {name: tuple(group) for name, group in groups.items()}

    @property
    def replicated(self) -> list[nn.Module]:
        """The collections of replicated tables that every rank holds as they are."""
        return [collection for name, collection in self.collections.items() if name.startswith("replicated")]

    def forward(self, rows: Mapping[str, Tensor], bags: Mapping[str, Bags] = NO_BAGS) -> dict[str, Tensor]:
        """By table, what is in its rows: (R, dim) for row numbers (R,) int64; and by name of bags (M, dim), one for each owner.

        All tables are asked, if for nothing.
        """
        found = {}
        device = next((asked.device for asked in rows.values()), torch.device("cpu"))
        for name, collection in self.collections.items():
            tables = self._tables[name]
            if tables[0].bags:
                found.update(_pooled(collection, tables, bags, device))
            else:
                jagged = collection(lookup_request({table.name: rows[table.name] for table in tables}))
                found.update({table.name: jagged[table.name].values() for table in tables})
        return found


def _group_of(spec: TableSpec) -> str:
    """Bags of two tables are equally many if they are of the same owners, as many features of each: that is what names a group."""
    if not spec.bags:
        return f"{'replicated' if spec.replicated else 'sharded'}_{spec.dim}"
    owners = Counter(name.partition(".")[0] for name in spec.bags)
    return "_".join(("bags", spec.pooling, *(f"{number}_{owner}" for owner, number in sorted(owners.items()))))


def _bag_collection(specs: list[TableSpec], device: torch.device) -> EmbeddingBagCollection:
    """Means are weighted sums, see models.features.bags."""
    configs = [
        EmbeddingBagConfig(s.num_rows, s.dim, name=s.name, feature_names=[s.name], pooling=PoolingType.SUM)
        for s in specs
    ]
    return EmbeddingBagCollection(configs, device=device, is_weighted=specs[0].pooling == "mean")


def _pooled(
    collection: nn.Module, tables: tuple[TableSpec, ...], bags: Mapping[str, Bags], device: torch.device
) -> dict[str, Tensor]:
    """By name of bags, their vectors."""
    asked = {
        table: joined_bags([bags.get(name, no_bags(table.name, table.pooling, device)) for name in table.bags])
        for table in tables
    }
    # A collection that is split by rows over ranks answers with as many as the rank with most bags has.
    pooled = collection(bag_request({table.name: given for table, given in asked.items()}))
    found = {}
    for table in tables:
        # Always by key: the values of a KeyedTensor are in the order of the plan.
        vectors, first = pooled[table.name], 0
        for name in table.bags:
            stop = first + (bags[name].lengths.numel() if name in bags else 0)
            found[name] = vectors[first:stop]
            first = stop
    return {name: vectors for name, vectors in found.items() if name in bags}


def lookup_request(rows: Mapping[str, torch.Tensor]) -> KeyedJaggedTensor:
    """Ask for rows of each table ((R,) int64) as a single bag, so that every rank has the same stride."""
    values = torch.cat(list(rows.values()))
    lengths = torch.tensor([ids.numel() for ids in rows.values()], dtype=torch.int64, device=values.device)
    # fbgemm reads the values' memory from its start, whatever their stride: a sliced tensor would be misread in silence.
    return KeyedJaggedTensor(keys=list(rows), values=values.contiguous(), lengths=lengths)


def bag_request(bags: Mapping[str, Bags]) -> KeyedJaggedTensor:
    """Ask for bags of each table, equally many of each; for an empty one where there are none. Ranks may have unequal numbers."""
    every = list(bags.values())
    numbers = {given.lengths.numel() for given in every}
    assert len(numbers) == 1, f"bags of one collection are of the same owners: {numbers}"
    whole = joined_bags(every)
    lengths = whole.lengths if numbers != {0} else whole.lengths.new_zeros(len(every))
    return KeyedJaggedTensor(list(bags), whole.rows, whole.weights, lengths=lengths)
