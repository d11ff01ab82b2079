"""The rows and bags that a batch looks up in embedding tables, as values and indices for its items, events, users and candidates.

Shapes: U items of a batch, N input events, B histories, R looked-up rows of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import devices
from models.batches.transfer import to_device
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
        return self if devices.is_host(device) else to_device(self, device)
