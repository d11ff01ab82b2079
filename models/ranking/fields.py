"""The fields of an impression: one vector for each source of information.

    interest | item v(i) | each feature of the item | each feature of the user | each feature of the impression

The field of a feature is the mean of its rows, or its numbers, as wide as its table. It has no projection, since the next layer
is linear in the fields or projects them itself. No field depends on other impressions.

Shapes: U items of a batch, B histories, M candidates, W width of a field.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from models.features.inputs import NO_INPUTS, ModelInputs
from models.features.request import ItemRequest
from models.features.values import InputFeature, feature_embedding


@dataclass(frozen=True)
class Owners:
    """The item and the history of each candidate, for their features."""

    item_of: Tensor  # (M,) int64
    history_of: Tensor  # (M,) int64
    num_items: int
    num_histories: int


@dataclass(frozen=True)
class Fields:
    """The list of fields of an impression."""

    item_width: int  # of the item's vector
    interest_width: int  # 0 without an interest
    items: tuple[InputFeature, ...] = ()
    inputs: ModelInputs = NO_INPUTS

    @property
    def widths(self) -> dict[str, int]:
        """Return the width of every field by name, in order."""
        widths = {"interest": self.interest_width} if self.interest_width else {}
        widths["item"] = self.item_width
        owned = (("item", self.items), ("user", self.inputs.users), ("candidate", self.inputs.candidates))
        return widths | {f"{owner}.{feature.name}": feature.width for owner, features in owned for feature in features}

    def gather(
        self,
        interest_MW: Tensor | None,
        items_MD: Tensor,
        rows: Mapping[str, Tensor],
        request: ItemRequest,
        owners: Owners,
    ) -> list[Tensor]:
        """Return every field, (M, W), in the order of `widths`.

        Args:
            interest_MW: the interest, if the ranker has one.
            items_MD: the vectors of the candidates' items.
            rows: looked-up rows of the request by table.
            request: the look-ups of the batch.
            owners: the items and histories of the candidates.
        """
        fields = [items_MD] if interest_MW is None else [interest_MW, items_MD]
        for feature in self.items:
            embedding_UW = feature_embedding(feature, rows, request.values[feature.name], owners.num_items)
            fields.append(embedding_UW.index_select(0, owners.item_of))
        for feature in self.inputs.users:
            embedding_BW = feature_embedding(feature, rows, request.users[feature.name], owners.num_histories)
            fields.append(embedding_BW.index_select(0, owners.history_of))
        for feature in self.inputs.candidates:
            fields.append(feature_embedding(feature, rows, request.candidates[feature.name], items_MD.shape[0]))
        return fields
