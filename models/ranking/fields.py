"""The fields of an impression: all that is known of it, each thing a vector of its own.

    interest | item v(i) | each feature of the item | each feature of the user | each feature of the impression

The field of a feature is the mean of its rows, or its numbers, as wide as its table: without a projection, since what comes next
is linear in the fields or projects them itself. Nothing here depends on other impressions.

Shapes: U items of a batch, B histories, M candidates, W width of a field.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from models.features.inputs import NO_INPUTS, Inputs
from models.features.items import ItemRequest
from models.features.values import InputFeature, said_of


@dataclass(frozen=True)
class Owners:
    """Whose features candidates have: item_of, history_of (M,) int64, among num_items items and num_histories histories."""

    item_of: Tensor
    history_of: Tensor
    num_items: int
    num_histories: int


@dataclass(frozen=True)
class Fields:
    """Which fields impressions have. item_width, interest_width: of the item's vector and of the interest, 0 if there is none."""

    item_width: int
    interest_width: int
    items: tuple[InputFeature, ...] = ()
    inputs: Inputs = NO_INPUTS

    @property
    def widths(self) -> dict[str, int]:
        """Of every field by name, in their order."""
        found = {"interest": self.interest_width} if self.interest_width else {}
        found["item"] = self.item_width
        owned = (("item", self.items), ("user", self.inputs.users), ("candidate", self.inputs.candidates))
        return found | {f"{owner}.{feature.name}": feature.width for owner, features in owned for feature in features}

    def gather(
        self,
        interest_MW: Tensor | None,
        items_MD: Tensor,
        rows: Mapping[str, Tensor],
        request: ItemRequest,
        owners: Owners,
    ) -> list[Tensor]:
        """(M, W) of every field, in the order of `widths`. rows: by table, what was looked up for the request."""
        found = [items_MD] if interest_MW is None else [interest_MW, items_MD]
        for feature in self.items:
            said_UW = said_of(feature, rows, request.values[feature.name], owners.num_items)
            found.append(said_UW.index_select(0, owners.item_of))
        for feature in self.inputs.users:
            said_BW = said_of(feature, rows, request.users[feature.name], owners.num_histories)
            found.append(said_BW.index_select(0, owners.history_of))
        for feature in self.inputs.candidates:
            found.append(said_of(feature, rows, request.candidates[feature.name], items_MD.shape[0]))
        return found
