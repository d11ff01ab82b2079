"""The vector of an item: the row of its id plus the embeddings of its features.

    v(i) = E[i] + sum over features of their embeddings of i          (models.features.values)

An item without a row of its own occurs in no training event. Its vector, and thus its score, comes from its features alone.

Shapes: U items of a batch, D model width, R looked-up rows of a table.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.features.request import ITEM_TABLE, ItemRequest
from models.features.values import InputFeature, add_features, draw_projections, projections_of


class ItemComposer(nn.Module):
    """Sums the vector of an item.

    Projections are learned weights. A feature from a table of the model's width needs none.
    """

    def __init__(self, width: int, features: tuple[InputFeature, ...]) -> None:
        super().__init__()
        self.features = features
        self.projections = projections_of(features, width)

    def forward(self, rows: Mapping[str, Tensor], request: ItemRequest) -> Tensor:
        """Return the vectors of the items, (U, D). `rows`: looked-up rows (R, width) of request.rows by table."""
        own = rows[ITEM_TABLE]
        vectors_UD = own if request.own is None else own.index_select(0, request.own)
        if request.has_row is not None:
            vectors_UD = vectors_UD * request.has_row
        return add_features(vectors_UD, self.features, self.projections, rows, request.values)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the projections from `generator` (CPU), in a fixed order."""
        draw_projections(self.features, self.projections, generator)
