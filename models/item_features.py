"""What an item is to a model: the vector of its id, and what its features add.

    v(i) = E[i] + sum over features f of  P_f mean over values x of E_f[x]     (categorical, buckets)
                                        + P_f x                                (numbers, content vectors)

An item without a row of its own, because no training event has it, is what its features say alone: that is how it gets a score.
What has to be looked up for a batch's items is settled on the host, by `Catalogue.request`; `ItemComposer` adds it up.

Shapes: U items of a batch, D model width, n values of all U items, R looked-up rows of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

ITEM_TABLE = "item"


@dataclass(frozen=True)
class ItemFeature:
    """A feature of items. table: of its ids, else none; width: of a row of the table, or numbers in its vector."""

    name: str
    table: str | None
    width: int


@dataclass(frozen=True)
class ItemValues:
    """The values of one feature for U items.

    Of ids: index (n,) int64 into the looked-up rows of its table, owner (n,) int64 the item of each, weight (n,) float32 one
    over the number of values of that item. Of numbers: dense (U, width) float32, and the others empty.
    """

    index: Tensor
    owner: Tensor
    weight: Tensor
    dense: Tensor

    def to(self, device: torch.device) -> "ItemValues":
        return ItemValues(*(t.to(device) for t in (self.index, self.owner, self.weight, self.dense)))


@dataclass(frozen=True)
class ItemRequest:
    """What is looked up for U items. rows: by table (R,) int64, each once.

    own: (U,) int64 into rows["item"], none where it is 0 .. U - 1; has_row: (U, 1) float32, 0 for items without a row of their
    own, none where all have one; values: by feature.
    """

    rows: Mapping[str, Tensor]
    own: Tensor | None = None
    has_row: Tensor | None = None
    values: Mapping[str, ItemValues] = field(default_factory=dict)

    def to(self, device: torch.device) -> "ItemRequest":
        return ItemRequest(
            {table: rows.to(device) for table, rows in self.rows.items()},
            None if self.own is None else self.own.to(device),
            None if self.has_row is None else self.has_row.to(device),
            {name: values.to(device) for name, values in self.values.items()},
        )


@dataclass(frozen=True)
class IdColumn:
    """Ids of a feature for every item id i: values[offsets[i]:offsets[i + 1]], int; offsets (num_ids + 1,) int64."""

    values: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Catalogue:
    """All items as the host knows them. Entry i of every array belongs to item id i; id 0 is the unknown item.

    num_known: ids below it are of items that the training part knows; num_ids: of all.
    rows: (num_ids,) int64, the row of the item table that each id has, none where each id is its own row; has_row: (num_ids,)
    bool, none where all have one; columns: by feature, IdColumn or (num_ids, width) float32.
    """

    num_known: int
    num_ids: int
    rows: np.ndarray | None = None
    has_row: np.ndarray | None = None
    features: tuple[ItemFeature, ...] = ()
    columns: Mapping[str, IdColumn | np.ndarray] = field(default_factory=dict)

    @property
    def scores_unknown(self) -> bool:
        """Whether items that the training part does not know have ids and vectors: their features say what they are."""
        return bool(self.features)

    @cached_property
    def known(self) -> ItemRequest:
        """All items that the training part knows, and the unknown one: what a step over the whole catalogue looks up."""
        return self.request(np.arange(self.num_known))

    def request(self, ids: np.ndarray) -> ItemRequest:
        """What to look up for items `ids` ((U,) int64, ascending and each once). All tables are asked, if for nothing."""
        own_rows = ids if self.rows is None else self.rows[ids]
        wanted: dict[str, list[tuple[str, np.ndarray]]] = {ITEM_TABLE: [("", own_rows)]}
        owners, values = {}, {}
        for feature in self.features:
            column = self.columns[feature.name]
            if isinstance(column, IdColumn):
                assert feature.table is not None
                entries, owners[feature.name] = _values_of(column, ids)
                if feature.table == ITEM_TABLE and self.rows is not None:
                    entries = self.rows[entries]
                wanted.setdefault(feature.table, []).append((feature.name, entries))
            else:
                values[feature.name] = ItemValues(_EMPTY, _EMPTY, torch.zeros(0), torch.from_numpy(column[ids]))
        rows, own = {}, None
        for table, asked in wanted.items():
            if table == ITEM_TABLE and len(asked) == 1 and self.rows is None:
                rows[table] = _tensor(ids)
                continue
            unique, index = np.unique(np.concatenate([entries for _, entries in asked]), return_inverse=True)
            rows[table] = _tensor(unique)
            ends = np.cumsum([entries.size for _, entries in asked])
            for (name, _), place in zip(asked, np.split(index, ends[:-1]), strict=True):
                if name:
                    values[name] = _id_values(place, owners[name])
                else:
                    own = _tensor(place)
        has_row = None
        if self.has_row is not None:
            has_row = torch.from_numpy(self.has_row[ids].astype(np.float32))[:, None]
        return ItemRequest(rows, own, has_row, values)


_EMPTY = torch.zeros(0, dtype=torch.int64)


def _id_values(place: np.ndarray, owner: np.ndarray) -> ItemValues:
    weight = 1.0 / np.bincount(owner, minlength=1)[owner]
    return ItemValues(_tensor(place), _tensor(owner), torch.from_numpy(weight.astype(np.float32)), torch.zeros(0))


def _values_of(column: IdColumn, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values, owner) of the items `ids`, owner counting from 0."""
    starts = column.offsets[ids]
    lengths = column.offsets[ids + 1] - starts
    owner = np.repeat(np.arange(ids.size), lengths)
    place = np.arange(owner.size) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts[owner]
    return column.values[place], owner


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


class ItemComposer(nn.Module):
    """Adds up an item's vector. Projections are learned; a table as wide as the model needs none."""

    def __init__(self, width: int, features: tuple[ItemFeature, ...]) -> None:
        super().__init__()
        self.features = features
        self.projections = nn.ModuleDict(
            {
                feature.name: nn.Linear(feature.width, width, bias=False)
                for feature in features
                if feature.table is None or feature.width != width
            }
        )

    def forward(self, rows: Mapping[str, Tensor], request: ItemRequest) -> Tensor:
        """rows: by table (R, width), what was looked up for request.rows. Returns (U, D)."""
        own = rows[ITEM_TABLE]
        vectors_UD = own if request.own is None else own.index_select(0, request.own)
        if request.has_row is not None:
            vectors_UD = vectors_UD * request.has_row
        num_items = vectors_UD.shape[0]
        for feature in self.features:
            given = request.values[feature.name]
            if feature.table is None:
                said = given.dense.to(own.dtype)
            else:
                pieces = rows[feature.table].index_select(0, given.index) * given.weight[:, None]
                said = pieces.new_zeros((num_items, feature.width)).index_add(0, given.owner, pieces)
            if feature.name in self.projections:
                said = self.projections[feature.name](said)
            vectors_UD = vectors_UD + said
        return vectors_UD

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the projections from `generator` (CPU), in a fixed order: each keeps the length of its input on average."""
        for feature in self.features:
            if feature.name in self.projections:
                weight = next(self.projections[feature.name].parameters())
                weight.copy_(torch.empty(weight.shape).normal_(0.0, feature.width**-0.5, generator=generator))
