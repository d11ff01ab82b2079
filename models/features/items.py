"""What an item is to a model: the vector of its id, and what its features add.

    v(i) = E[i] + sum over features of what they say of i          (models.features.values)

An item without a row of its own, because no training event has it, is what its features say alone: that is how it gets a score.
What has to be looked up for a batch's items is settled on the host, by `Catalogue.request`; `ItemComposer` adds it up. What its
events, users and candidates say besides is looked up in the same request, `Catalogue.beside`, so that no table is asked twice.

Shapes: U items of a batch, N input events, B histories, D model width, n values of all U items, R looked-up rows of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from models.features.bags import Bags, bags_of
from models.features.inputs import NO_INPUTS, Inputs
from models.features.values import (
    Asked,
    FeatureValues,
    InputFeature,
    ValueColumn,
    add_features,
    bag_name,
    bag_values,
    draw_projections,
    id_values,
    number_values,
    projections_of,
    resolve_rows,
)

ITEM_TABLE = "item"


@dataclass(frozen=True)
class ItemRequest:
    """What is looked up for U items, and beside them for events, users and candidates of a batch. rows: by table (R,), each once.

    own: (U,) int64 into rows["item"], none where it is 0 .. U - 1; has_row: (U, 1) float32, 0 for items without a row of their
    own, none where all have one; values: of the items, by feature; events, users, candidates: by feature, owned by the batch's
    input events, histories, and candidates where it has some (ranking). bags: what is looked up as bags, by "values.NAME" for a
    feature of items, "events.NAME" for one of events, and so on.
    """

    rows: Mapping[str, Tensor]
    own: Tensor | None = None
    has_row: Tensor | None = None
    values: Mapping[str, FeatureValues] = field(default_factory=dict)
    events: Mapping[str, FeatureValues] = field(default_factory=dict)
    users: Mapping[str, FeatureValues] = field(default_factory=dict)
    candidates: Mapping[str, FeatureValues] = field(default_factory=dict)
    bags: Mapping[str, Bags] = field(default_factory=dict)

    def to(self, device: torch.device) -> "ItemRequest":
        return ItemRequest(
            {table: rows.to(device) for table, rows in self.rows.items()},
            None if self.own is None else self.own.to(device),
            None if self.has_row is None else self.has_row.to(device),
            _moved(self.values, device),
            _moved(self.events, device),
            _moved(self.users, device),
            _moved(self.candidates, device),
            {name: bags.to(device) for name, bags in self.bags.items()},
        )


def _moved(values: Mapping[str, FeatureValues], device: torch.device) -> dict[str, FeatureValues]:
    return {name: found.to(device) for name, found in values.items()}


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
    inputs: what else the model is told, of events and users.
    """

    num_known: int
    num_ids: int
    rows: np.ndarray | None = None
    has_row: np.ndarray | None = None
    features: tuple[InputFeature, ...] = ()
    columns: Mapping[str, IdColumn | np.ndarray] = field(default_factory=dict)
    inputs: Inputs = NO_INPUTS

    @property
    def scores_unknown(self) -> bool:
        """Whether items that the training part does not know have ids and vectors: their features say what they are."""
        return bool(self.features)

    def bags_of_table(self, table: str) -> tuple[str, ...]:
        """The names under which requests ask for bags of a table: none if it is looked up by row."""
        inputs = self.inputs
        owned = {
            "values": self.features,
            "events": inputs.events,
            "users": inputs.users,
            "candidates": inputs.candidates,
        }
        return tuple(
            bag_name(owners, feature)
            for owners, features in owned.items()
            for feature in features
            if feature.bagged and feature.table == table
        )

    @cached_property
    def known(self) -> ItemRequest:
        """All items that the training part knows, and the unknown one: what a step over the whole catalogue looks up."""
        return self.request(np.arange(self.num_known))

    def request(self, ids: np.ndarray) -> ItemRequest:
        """What to look up for items `ids` ((U,) int64, ascending and each once). All tables are asked, if for nothing."""
        own_rows = ids if self.rows is None else self.rows[ids]
        wanted: dict[str, list[tuple[InputFeature | None, np.ndarray]]] = {ITEM_TABLE: [(None, own_rows)]}
        owners, values, bags = {}, {}, {}
        for feature in self.features:
            column = self.columns[feature.name]
            if isinstance(column, IdColumn):
                assert feature.table is not None
                entries, owners[feature.name] = _values_of(column, ids)
                if feature.bagged:
                    name = bag_name("values", feature)
                    lengths = np.bincount(owners[feature.name], minlength=ids.size)
                    bags[name] = bags_of(feature.table, entries, lengths, feature.pooling)
                    values[feature.name] = bag_values(name, ids.size)
                    continue
                if feature.table == ITEM_TABLE and self.rows is not None:
                    entries = self.rows[entries]
                wanted.setdefault(feature.table, []).append((feature, entries))
            else:
                values[feature.name] = number_values(column[ids])
        rows, own = {}, None
        for table, asked in wanted.items():
            if table == ITEM_TABLE and len(asked) == 1 and self.rows is None:
                rows[table] = _tensor(ids)
                continue
            unique, index = np.unique(np.concatenate([entries for _, entries in asked]), return_inverse=True)
            rows[table] = _tensor(unique)
            ends = np.cumsum([entries.size for _, entries in asked])
            for (asking, _), place in zip(asked, np.split(index, ends[:-1]), strict=True):
                if asking is None:
                    own = _tensor(place)
                else:
                    values[asking.name] = id_values(place, owners[asking.name], asking.pooling)
        has_row = None
        if self.has_row is not None:
            has_row = torch.from_numpy(self.has_row[ids].astype(np.float32))[:, None]
        for table in self.inputs.tables:
            rows.setdefault(table, _tensor(_NOTHING))
        return ItemRequest(rows, own, has_row, values, bags=bags)

    def beside(
        self,
        request: ItemRequest,
        events: Mapping[str, ValueColumn],
        users: Mapping[str, ValueColumn],
        candidates: Mapping[str, ValueColumn] | None = None,
    ) -> ItemRequest:
        """The request of a batch's items with what its events, users and candidates say: columns by feature, an entry for each."""
        inputs = self.inputs
        if not inputs.events and not inputs.users and not inputs.candidates:
            return request
        row_of_id = {} if self.rows is None else {ITEM_TABLE: self.rows}
        asked = [Asked("events", inputs.events, events), Asked("users", inputs.users, users)]
        if candidates is not None:
            asked.append(Asked("candidates", inputs.candidates, candidates))
        rows, bags, found = resolve_rows(request.rows, row_of_id, asked)
        own = request.own
        if own is None and rows[ITEM_TABLE] is not request.rows[ITEM_TABLE]:
            own = torch.arange(request.rows[ITEM_TABLE].numel())
        of_events, of_users, *of_candidates = found
        return replace(
            request,
            rows=rows,
            own=own,
            events=of_events,
            users=of_users,
            candidates=of_candidates[0] if of_candidates else {},
            bags={**request.bags, **bags},
        )


_NOTHING = np.zeros(0, np.int64)


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

    def __init__(self, width: int, features: tuple[InputFeature, ...]) -> None:
        super().__init__()
        self.features = features
        self.projections = projections_of(features, width)

    def forward(self, rows: Mapping[str, Tensor], request: ItemRequest) -> Tensor:
        """rows: by table (R, width), what was looked up for request.rows. Returns (U, D)."""
        own = rows[ITEM_TABLE]
        vectors_UD = own if request.own is None else own.index_select(0, request.own)
        if request.has_row is not None:
            vectors_UD = vectors_UD * request.has_row
        return add_features(vectors_UD, self.features, self.projections, rows, request.values)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the projections from `generator` (CPU), in a fixed order."""
        draw_projections(self.features, self.projections, generator)
