"""Programs that torch.export traces: from ids, features and times to user vectors, or to the logits of impressions.

A program holds the dense weights of a trained model and its embedding tables, with plain look-ups. The vector of an item, with its
features, follows from its id alone, so a program has one table of item vectors in place of the item table and the tables of item
features. Its modules are those of the trained model; attention takes its path for tracing (models.attention.traceable).

A program receives one dictionary of tensors. Histories and impressions are jagged: `offsets` bound what belongs to whom. No history
is empty.

    items                   (N,) int64             item ids of the events; 0 is an unknown item
    offsets                 (B + 1,) int64         bounds of the histories among the events
    places                  (L,) int64             0, 1, 2 ...: at least as many as the longest history has events
    seconds                 (N,) int64             times of the events, from the first event of each history
    request_seconds         (N,) int64             time of the request that follows each event
    time.PART               (N,) int64             row of the vector of this part of the time
    event.NAME, user.NAME   (N or B, V) int64      rows of a feature of ids, at most V for each owner; -1 where there are fewer
                            (N or B, W) float32    numbers of a feature of W numbers
    for rankers:
    candidate_items         (M,) int64             item ids of the impressions
    candidate_offsets       (B + 1,) int64         bounds of the impressions of each history
    candidate_places        (Q,) int64             0, 1, 2 ...: at least as many as one history has impressions
    history_end             (M,) int64             number of events before each impression
    candidate_seconds       (M,) int64             time of each impression, from the first event of its history
    candidate_time.PART     (M,) int64             as time.PART
    candidate.NAME          (M, V) or (M, W)       as event.NAME

Shapes: B histories, N events, M impressions, D model width.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models.attention.traceable import last_of_each, last_rows, last_tokens, traceable_candidates, traceable_layout
from models.batches.history_batch import HistoryBatch
from models.batches.jagged import JaggedLayout
from models.encoders.encoder import Encoder
from models.features.composer import ItemComposer
from models.features.request import ITEM_TABLE, ItemRequest
from models.features.values import BagRange, FeatureValues, InputFeature
from models.objectives.softmax import scale_vectors
from models.ranking.batch import RankingBatch
from models.ranking.reach import reach_of

# The table of features that have ids of items as values. They look up the row of an id alone, without the features of that item.
ROWS_OF_ITEMS = "item.*"

Tensors = Mapping[str, Tensor]


class Program(nn.Module):
    """A program of either task: its tables, and the look-ups of features.

    Args:
        model: the trained model.
        tables: modules that return rows by their numbers: "item", the tables of features of events, users and impressions, and
            for each feature of items "item.NAME".
    """

    def __init__(self, model: Any, tables: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = _without_tables(model)
        self.names = tuple(tables)
        self.tables = nn.ModuleList(tables.values())

    def _look_up(self, table: str, rows: Tensor) -> Tensor:
        vectors: Tensor = self.tables[self.names.index(table)](rows)
        return vectors

    def _embedding(self, feature: InputFeature, given: Tensor) -> Tensor:
        """Return a feature's vector for each owner, (owners, W): numbers, or the mean or sum of rows."""
        if feature.table is None:
            return given
        is_value = given >= 0
        table = ROWS_OF_ITEMS if feature.table == ITEM_TABLE else feature.table
        vectors = self._look_up(table, given.clamp(min=0)) * is_value[:, :, None]
        if feature.pooling == "sum":
            return vectors.sum(dim=1)
        return vectors.sum(dim=1) / is_value.sum(dim=1, keepdim=True).clamp(min=1)

    def _values(
        self, owners: str, features: tuple[InputFeature, ...], inputs: Tensors, rows: dict[str, Tensor]
    ) -> dict[str, FeatureValues]:
        """Return the values of features as a model takes them, and put their vectors into `rows`."""
        values = {}
        for feature in features:
            name = f"{owners}.{feature.name}"
            embedding = self._embedding(feature, inputs[name])
            rows[name] = embedding
            values[feature.name] = _as_values(feature, name, embedding)
        return values


class NextItemProgram(Program):
    """From histories to the vectors of users, (B, D) float32, for a dot product with the vectors of items."""

    def forward(self, inputs: Tensors) -> Tensor:
        model = self.model
        items = inputs["items"]
        layout = traceable_layout(inputs["offsets"], items.shape[0], inputs["places"])
        rows = {ITEM_TABLE: self._look_up(ITEM_TABLE, items)}
        of_events = self._values("event", model.inputs.inputs.events, inputs, rows)
        of_users = self._values("user", model.inputs.inputs.users, inputs, rows)
        nothing = items[:0]
        last = _last_rows(layout, model.encoder)
        batch = HistoryBatch(
            row_ids=nothing,
            layout=layout,
            lookup_ids=items,
            history_index=torch.arange(items.shape[0]),
            target_ids=nothing,
            target_index=nothing,
            negative_ids=nothing,
            negative_index=nothing,
            items=ItemRequest({ITEM_TABLE: items}, events=of_events, users=of_users),
            masked=last_of_each(layout) if model.mask is not None else None,
            times=inputs.get("seconds"),
            request_times=inputs.get("request_seconds"),
            time_rows=_named(inputs, "time."),
        )
        encoded_ND, _ = model._encode(rows, rows[ITEM_TABLE], batch)
        return scale_vectors(encoded_ND.index_select(0, last), model.config.objective.normalize)


class RankingProgram(Program):
    """From histories with impressions to the logit of each label, (M, T) float32.

    categories: (items,) int64, row of the value by which a search narrows histories, -1 without one; None: no such search.
    """

    def __init__(self, model: Any, tables: Mapping[str, nn.Module], categories: Tensor | None = None) -> None:
        super().__init__(model, tables)
        self.register_buffer("categories", categories)
        self.categories: Tensor | None

    def forward(self, inputs: Tensors) -> Tensor:
        model = self.model
        shown = inputs["candidate_items"]
        items = torch.cat((inputs["items"], shown))
        num_events = inputs["items"].shape[0]
        number = torch.arange(items.shape[0])
        layout = traceable_layout(inputs["offsets"], num_events, inputs["places"])
        candidates = traceable_candidates(
            layout,
            inputs["candidate_offsets"],
            inputs["history_end"],
            reach_of(model.config).attended,
            inputs["candidate_places"],
        )
        rows = {ITEM_TABLE: self._look_up(ITEM_TABLE, items)}
        owned = model.fields.inputs
        request = ItemRequest(
            {ITEM_TABLE: items},
            values=self._values_of_items(items, number, rows),
            events=self._values("event", owned.events, inputs, rows),
            users=self._values("user", owned.users, inputs, rows),
            candidates=self._values("candidate", owned.candidates, inputs, rows),
        )
        batch = RankingBatch(
            row_ids=inputs["offsets"][1:],
            layout=layout,
            candidate_layout=candidates,
            lookup_ids=items,
            items=request,
            history_index=number[:num_events],
            candidate_offsets=inputs["candidate_offsets"],
            history_of=candidates.history,
            candidate_index=number[num_events:],
            candidate_ids=shown,
            shown_at=shown,
            history_end=inputs["history_end"],
            labels={},
            times=inputs.get("seconds"),
            candidate_times=inputs.get("candidate_seconds"),
            time_rows=_named(inputs, "time."),
            candidate_time_rows=_named(inputs, "candidate_time."),
        )
        logits: Tensor = model.logits(rows, batch)
        return logits

    def _values_of_items(self, items: Tensor, number: Tensor, rows: dict[str, Tensor]) -> dict[str, FeatureValues]:
        values = {}
        for feature in self.model.fields.items:
            name = f"item.{feature.name}"
            rows[name] = self._look_up(name, items)
            values[feature.name] = _as_values(feature, name, rows[name])
            if self.categories is not None and feature.name == self.model.config.interest.search.feature:
                categories = self.categories.index_select(0, items)
                values[feature.name] = replace(values[feature.name], index=categories, owner=number)
        return values


def _as_values(feature: InputFeature, name: str, embedding: Tensor) -> FeatureValues:
    """Return the values of a feature with known vectors, (owners, W): those of numbers, or looked up under a name."""
    none = torch.zeros(0, dtype=torch.int64)
    bags = None if feature.table is None else BagRange(name, 0, embedding.shape[0])
    return FeatureValues(none, none, embedding[:0], embedding, bags)


def _last_rows(layout: JaggedLayout, encoder: Encoder) -> Tensor:
    """Return the row of the last event of each history in what the encoder returns of a traceable layout, (B,) int64."""
    merge = encoder.merge
    if merge is not None:
        return last_tokens(layout, merge.size, merge.recent, merge.max_history)
    return last_rows(layout, encoder.config.num_newest)


def _named(inputs: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in inputs.items() if name.startswith(prefix)}


def _without_tables(model: Any) -> Any:
    """Return a copy of a model that shares its dense weights. It has no tables, and takes the vectors of items as they are."""
    dense = copy.copy(model)
    dense._modules = {name: module for name, module in model._modules.items() if name != "tables"}
    dense._modules["items"] = ItemComposer(model.width, ())
    return dense
