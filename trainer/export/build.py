"""Programs of a trained model, before they are traced: its dense weights, the vectors of all items, the tables of features.

Shapes: V + 1 ids of items, with the unknown item 0, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.features.request import ITEM_TABLE, ItemRequest
from models.features.values import InputFeature, feature_embedding
from trainer.export.programs import ROWS_OF_ITEMS, NextItemProgram, Program, RankingProgram
from trainer.export.tables import Precision, table_of
from trainer.inference.trained_model import TrainedModel

LOOKUP_ITEMS = 65_536  # items that are looked up at a time


@dataclass(frozen=True)
class Weights:
    """The tables of a program, by its names for them, in float32."""

    tables: dict[str, Tensor]
    """(rows, width) by table."""
    categories: Tensor | None = None
    """(V + 1,) int64, the category of each item, for rankers that search by it."""


def weights_of(trained: TrainedModel) -> Weights:
    """Return the tables of a model's program."""
    model = trained.model
    inputs = trained.catalogue.inputs
    tables = {ITEM_TABLE: torch.cat([model.items(rows, request) for request, rows in _all_items(trained)])}
    features = (*inputs.events, *inputs.users, *inputs.candidates)
    for table in dict.fromkeys(feature.table for feature in features if feature.table is not None):
        tables[ROWS_OF_ITEMS if table == ITEM_TABLE else table] = _weight(trained, table)
    if trained.manifest.task == "next_item":
        return Weights(tables)
    search = model.config.interest.search
    categories: list[Tensor] = []
    of_features: dict[str, list[Tensor]] = {feature.name: [] for feature in model.fields.items}
    for request, rows in _all_items(trained):
        for feature in model.fields.items:
            embedding = feature_embedding(feature, rows, request.values[feature.name], _num_items(request))
            of_features[feature.name].append(embedding)
        if search.kind == "category":
            feature = next(feature for feature in model.fields.items if feature.name == search.feature)
            categories.append(_categories(request, feature))
    tables |= {f"item.{name}": torch.cat(pieces) for name, pieces in of_features.items()}
    return Weights(tables, torch.cat(categories) if categories else None)


def program_of(trained: TrainedModel, weights: Weights, precision: Precision) -> Program:
    """Return the program of a model, in evaluation mode."""
    tables = {name: table_of(weight, precision) for name, weight in weights.tables.items()}
    if trained.manifest.task == "next_item":
        return NextItemProgram(trained.model, tables).eval()
    return RankingProgram(trained.model, tables, weights.categories).eval()


def _all_items(trained: TrainedModel) -> Iterator[tuple[ItemRequest, dict[str, Tensor]]]:
    """Yield the request for all ids in pieces, and what it looks up."""
    with torch.no_grad():
        for start in range(0, trained.catalogue.num_ids, LOOKUP_ITEMS):
            ids = np.arange(start, min(start + LOOKUP_ITEMS, trained.catalogue.num_ids))
            request = trained.dynamic.rows_of(trained.catalogue.request(ids))
            yield request, trained.look_up(request)


def _num_items(request: ItemRequest) -> int:
    return int((request.rows[ITEM_TABLE] if request.own is None else request.own).numel())


def _weight(trained: TrainedModel, table: str) -> Tensor:
    """Return all rows of a table. Those of the item table are by id, since ids are not its rows if it is hashed."""
    ends = tuple(f".{kind}.{table}.weight" for kind in ("embeddings", "embedding_bags"))
    weight: Tensor = next(
        weight.detach() for name, weight in trained.model.tables.named_parameters() if f".{name}".endswith(ends)
    )
    rows = trained.catalogue.rows
    return weight[torch.from_numpy(rows)] if table == ITEM_TABLE and rows is not None else weight


def _categories(request: ItemRequest, feature: InputFeature) -> Tensor:
    """Return the category of each item of a request, (U,) int64: the first row of its values, or -1 for an item without one."""
    assert feature.table is not None
    values = request.values[feature.name]
    none = torch.iinfo(torch.int64).max
    row_U = values.index.new_full((_num_items(request),), none)
    row_U = row_U.scatter_reduce(0, values.owner, request.rows[feature.table][values.index], "amin")
    return torch.where(row_U == none, -1, row_U)
