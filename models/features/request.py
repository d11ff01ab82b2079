"""The rows and bags that a batch looks up in embedding tables, as values and indices for its items, events, users and candidates.

Shapes: U items of a batch, N input events, B histories, R looked-up rows of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.features.bags import Bags
from models.features.values import FeatureValues

ITEM_TABLE = "item"


@dataclass(frozen=True)
class ItemRequest:
    """The look-ups for the U items of a batch, and for the features of its events, users and candidates."""

    rows: Mapping[str, Tensor]  # by table (R,), unique
    own: Tensor | None = None  # (U,) int64 into rows["item"]; None: 0 .. U - 1
    has_row: Tensor | None = None  # (U, 1) float32, 0 for items without a row of their own; None: all have one
    values: Mapping[str, FeatureValues] = field(default_factory=dict)  # of the items, by feature
    events: Mapping[str, FeatureValues] = field(default_factory=dict)  # of the input events, by feature
    users: Mapping[str, FeatureValues] = field(default_factory=dict)  # of the histories, by feature
    candidates: Mapping[str, FeatureValues] = field(default_factory=dict)  # of the candidates (ranking), by feature
    # by name: "values.NAME" for a feature of items, "events.NAME" for one of events, and so on
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
    return {name: entry.to(device) for name, entry in values.items()}
