"""All items with their features, on the host, and the look-up requests for some of them.

`Catalogue.request` covers the items of a batch. `Catalogue.with_context` adds the features of its events, users and candidates
to the same request, so that each table is looked up once.

Shapes: U items of a batch, n values of all U items, R looked-up rows of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from models.features.bags import bags_of
from models.features.inputs import NO_INPUTS, ModelInputs
from models.features.request import ITEM_TABLE, ItemRequest
from models.features.values import (
    FeatureColumns,
    InputFeature,
    ValueColumn,
    bag_name,
    bag_values,
    id_values,
    number_values,
    resolve_rows,
)


@dataclass(frozen=True)
class IdColumn:
    """Ids of a feature for every item id i: values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray  # int
    offsets: np.ndarray  # (num_ids + 1,) int64


@dataclass(frozen=True)
class Catalogue:
    """All items with their features, on the host.

    Entry i of every array belongs to item id i. Id 0 is the unknown item.
    """

    num_known: int  # ids below it are of items of the training split
    num_ids: int  # of all items
    rows: np.ndarray | None = None  # (num_ids,) int64, row of the item table of each id; None: the id itself
    has_row: np.ndarray | None = None  # (num_ids,) bool; None: all have one
    features: tuple[InputFeature, ...] = ()
    # by feature, IdColumn or (num_ids, width) float32
    columns: Mapping[str, IdColumn | np.ndarray] = field(default_factory=dict)
    inputs: ModelInputs = NO_INPUTS  # inputs of the model from events and users

    @property
    def scores_unknown(self) -> bool:
        """Return whether items outside of the training split have ids. Their features give them vectors."""
        return bool(self.features)

    def bags_of_table(self, table: str) -> tuple[str, ...]:
        """Return the names of the bags that requests look up in a table. A table that is looked up by row has none."""
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
        """Return the request for all items of the training split and the unknown item, for steps over the catalogue."""
        return self.request(np.arange(self.num_known))

    def request(self, ids: np.ndarray) -> ItemRequest:
        """Return the look-ups for items `ids` ((U,) int64, ascending and unique).

        The request contains all tables, some of them with no rows.
        """
        own_rows = ids if self.rows is None else self.rows[ids]
        by_table: dict[str, list[tuple[InputFeature | None, np.ndarray]]] = {ITEM_TABLE: [(None, own_rows)]}
        owners = {}
        values = {}
        bags = {}
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
                by_table.setdefault(feature.table, []).append((feature, entries))
            else:
                values[feature.name] = number_values(column[ids])
        rows = {}
        own = None
        for table, entries_of in by_table.items():
            if table == ITEM_TABLE and len(entries_of) == 1 and self.rows is None:
                rows[table] = _tensor(ids)
                continue
            unique, index = np.unique(np.concatenate([entries for _, entries in entries_of]), return_inverse=True)
            rows[table] = _tensor(unique)
            ends = np.cumsum([entries.size for _, entries in entries_of])
            for (requesting, _), place in zip(entries_of, np.split(index, ends[:-1]), strict=True):
                if requesting is None:
                    own = _tensor(place)
                else:
                    values[requesting.name] = id_values(place, owners[requesting.name], requesting.pooling)
        has_row = None
        if self.has_row is not None:
            has_row = torch.from_numpy(self.has_row[ids].astype(np.float32))[:, None]
        for table in self.inputs.tables:
            rows.setdefault(table, _tensor(_NOTHING))
        return ItemRequest(rows, own, has_row, values, bags=bags)

    def with_context(
        self,
        request: ItemRequest,
        events: Mapping[str, ValueColumn],
        users: Mapping[str, ValueColumn],
        candidates: Mapping[str, ValueColumn] | None = None,
    ) -> ItemRequest:
        """Return a batch's request extended by the features of its events, users and candidates.

        Args:
            request: of the items of the batch.
            events: columns of the events by feature.
            users: columns of the users by feature.
            candidates: columns of the candidates by feature, for rankers.
        """
        inputs = self.inputs
        if not inputs.events and not inputs.users and not inputs.candidates:
            return request
        row_of_id = {} if self.rows is None else {ITEM_TABLE: self.rows}
        requested = [FeatureColumns("events", inputs.events, events), FeatureColumns("users", inputs.users, users)]
        if candidates is not None:
            requested.append(FeatureColumns("candidates", inputs.candidates, candidates))
        rows, bags, resolved = resolve_rows(request.rows, row_of_id, requested)
        own = request.own
        if own is None and rows[ITEM_TABLE] is not request.rows[ITEM_TABLE]:
            own = torch.arange(request.rows[ITEM_TABLE].numel())
        of_events, of_users, *of_candidates = resolved
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
    """Return (values, owner) of the items `ids`, with owners counted from 0."""
    starts = column.offsets[ids]
    lengths = column.offsets[ids + 1] - starts
    owner = np.repeat(np.arange(ids.size), lengths)
    place = np.arange(owner.size) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts[owner]
    return column.values[place], owner


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
