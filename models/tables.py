"""Embedding tables as TorchRec modules, before they are sharded."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models import devices
from models.features.bags import Bags, Pooling, concatenate_bags, empty_bags
from models.features.request import ItemRequest

NO_BAGS: Mapping[str, Bags] = {}


class SentRequest(Protocol):
    """A request to a sharded collection of tables that was sent to other ranks before the look-up."""

    def looked_up(self) -> Any:
        """Return what the collection returns for the request."""


NOTHING_SENT: Mapping[str, SentRequest] = {}


@dataclass(frozen=True)
class TableSpec:
    """Name, number of rows and width of one table. Its single feature has the table's name."""

    name: str
    num_rows: int
    dim: int
    replicated: bool = False  # every rank holds all rows; kept apart from sharded tables
    # names of the bags that are looked up in it, such as "values.NAME" for a feature of items; empty: looked up by row
    bags: tuple[str, ...] = ()
    pooling: Pooling = "mean"  # how the rows of a bag are combined


class EmbeddingTables(nn.Module):
    """Embedding tables that are looked up by id.

    Tables of one width share an EmbeddingCollection, since TorchRec requires equal widths. Tables with bags of the same
    owners share an EmbeddingBagCollection, which requires the same number of bags of each.

    Args:
        specs: the tables.
        device: of the tables that are sharded later; nothing is allocated on the meta device. Replicated tables are on the CPU,
            except those with bags.
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
        """Return the collections of replicated tables, which every rank holds unchanged."""
        return [collection for name, collection in self.collections.items() if name.startswith("replicated")]

    def requests(self, rows: Mapping[str, Tensor], bags: Mapping[str, Bags] = NO_BAGS) -> dict[str, KeyedJaggedTensor]:
        """Return the requests of a look-up by name of the collection. Arguments as in `forward`."""
        device = next((numbers.device for numbers in rows.values()), torch.device("cpu"))
        return {
            name: _bag_requests(tables, bags, device)
            if tables[0].bags
            else lookup_request({table.name: rows[table.name] for table in tables})
            for name, tables in self._tables.items()
        }

    def forward(
        self,
        rows: Mapping[str, Tensor],
        bags: Mapping[str, Bags] = NO_BAGS,
        sent: Mapping[str, SentRequest] = NOTHING_SENT,
    ) -> dict[str, Tensor]:
        """Look up rows and bags in all tables, also in those with an empty request.

        Args:
            rows: row numbers (R,) int64 by table.
            bags: bags by name.
            sent: requests of this look-up that were sent before, by name of the collection: all, or none.

        Returns:
            The rows (R, dim) by table, and one vector per owner (M, dim) by name of the bags.
        """
        vectors = {}
        requests = {} if sent else self.requests(rows, bags)
        for name, collection in self.collections.items():
            tables = self._tables[name]
            looked_up = sent[name].looked_up() if sent else collection(requests[name])
            if tables[0].bags:
                vectors.update(_by_bags(looked_up, tables, bags))
            else:
                vectors.update({table.name: looked_up[table.name].values() for table in tables})
        return vectors


class TableModel(nn.Module):
    """A model that looks rows up in embedding tables.

    The look-up and the rest of the model are two calls, since rows leave the sharded tables between them.
    """

    tables: EmbeddingTables

    def look_up(self, request: ItemRequest, sent: Mapping[str, SentRequest] = NOTHING_SENT) -> dict[str, Tensor]:
        """Look up the rows (R, width) of a request by table, and its bags by name.

        This is a collective operation once the tables are sharded. `sent`: what was sent before of this request.
        """
        looked_up: dict[str, Tensor] = self.tables(request.rows, request.bags, sent)
        return looked_up


def _group_of(spec: TableSpec) -> str:
    """Return the name of the collection that holds a table.

    Tables have the same number of bags if the bags have the same owners, with as many features of each.
    """
    if not spec.bags:
        return f"{'replicated' if spec.replicated else 'sharded'}_{spec.dim}"
    owners = Counter(name.partition(".")[0] for name in spec.bags)
    return "_".join(("bags", spec.pooling, *(f"{number}_{owner}" for owner, number in sorted(owners.items()))))


def _bag_collection(specs: list[TableSpec], device: torch.device) -> EmbeddingBagCollection:
    """Build the collection of tables with bags. Means are weighted sums, see models.features.bags."""
    configs = [
        EmbeddingBagConfig(s.num_rows, s.dim, name=s.name, feature_names=[s.name], pooling=PoolingType.SUM)
        for s in specs
    ]
    return EmbeddingBagCollection(configs, device=device, is_weighted=specs[0].pooling == "mean")


def _bag_requests(tables: tuple[TableSpec, ...], bags: Mapping[str, Bags], device: torch.device) -> KeyedJaggedTensor:
    """Return the request for the bags of tables of one collection."""
    requested = {
        table: concatenate_bags([bags.get(name, empty_bags(table.name, table.pooling, device)) for name in table.bags])
        for table in tables
    }
    return bag_request({table.name: given for table, given in requested.items()})


def _by_bags(pooled: Any, tables: tuple[TableSpec, ...], bags: Mapping[str, Bags]) -> dict[str, Tensor]:
    """Return the vectors of the bags by name."""
    by_name = {}
    for table in tables:
        # A row-wise sharded collection returns as many vectors as the rank with the most bags has.
        # Access by key: the values of a KeyedTensor are in the order of the plan.
        vectors = pooled[table.name]
        first = 0
        for name in table.bags:
            stop = first + (bags[name].lengths.numel() if name in bags else 0)
            by_name[name] = vectors[first:stop]
            first = stop
    return {name: vectors for name, vectors in by_name.items() if name in bags}


def lookup_request(rows: Mapping[str, torch.Tensor]) -> KeyedJaggedTensor:
    """Request rows of each table ((R,) int64) as a single bag, so that every rank has the same stride."""
    values = torch.cat(list(rows.values()))
    # The numbers are given on the host too: TorchRec would otherwise wait for the device to read them.
    numbers = [ids.numel() for ids in rows.values()]
    lengths = devices.from_host(torch.tensor(numbers, dtype=torch.int64), values.device)
    # fbgemm reads the values' memory from its start and ignores their stride, so it would silently misread a sliced tensor.
    return KeyedJaggedTensor(
        keys=list(rows), values=values.contiguous(), lengths=lengths, stride=1, length_per_key=numbers
    )


def bag_request(bags: Mapping[str, Bags]) -> KeyedJaggedTensor:
    """Request bags of each table, the same number of each. A table without bags gets one empty bag.

    Ranks may have different numbers of bags.
    """
    every = list(bags.values())
    numbers = {given.lengths.numel() for given in every}
    assert len(numbers) == 1, f"bags of one collection are of the same owners: {numbers}"
    whole = concatenate_bags(every)
    lengths = whole.lengths if numbers != {0} else whole.lengths.new_zeros(len(every))
    numbers_of_rows = [given.rows.numel() for given in every]
    return KeyedJaggedTensor(list(bags), whole.rows, whole.weights, lengths=lengths, length_per_key=numbers_of_rows)
