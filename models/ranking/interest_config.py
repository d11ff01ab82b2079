"""Settings of how a candidate is compared with the history of its user. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from models.attention.config import TargetAttentionConfig
from models.encoders.config import EncoderConfig


class SearchConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The first stage for long histories (SIM): it selects a few events per candidate, and attention sees only these."""

    kind: Literal["none", "category", "similarity"] = Field(
        "none",
        description="category: the most recent events with items that share the value of a feature with the candidate; similarity: "
        "the events with the largest dot products with the candidate; none: all events",
    )
    feature: str | None = Field(
        None,
        description="category: a feature of items with one value per item, such as category; default: unset, as other kinds "
        "need none",
    )
    num_found: int = Field(50, ge=1, le=4096, description="maximum number of events per candidate")

    @model_validator(mode="after")
    def _category_has_a_feature(self) -> "SearchConfig":
        if (self.kind == "category") != (self.feature is not None):
            raise ValueError(
                f'kind = "{self.kind}" with feature = {self.feature!r}: kind = "category" needs a feature of items, and no other '
                "kind has one"
            )
        return self


class InterestConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Comparison of a candidate with the history of its user."""

    kind: Literal["attention", "encoder", "mean", "none"] = Field(
        "attention",
        description="attention: to the encoder's outputs (with encoder.num_blocks = 0: to the events unchanged); encoder: the "
        "candidate passes through the encoder's blocks as the event after its history; mean: the average of the events; none: "
        "no history",
    )
    attention: TargetAttentionConfig = Field(
        default_factory=TargetAttentionConfig, description="how a candidate attends to the events before it"
    )
    search: SearchConfig = Field(default_factory=SearchConfig, description="events that are attended to or averaged")

    @model_validator(mode="after")
    def _search_narrows_something(self) -> "InterestConfig":
        if self.search.kind != "none" and self.kind not in ("attention", "mean"):
            raise ValueError(
                f'search.kind = "{self.search.kind}" narrows the events that are attended to or averaged. With '
                f'kind = "{self.kind}" there is nothing to narrow: choose kind = "attention" or search.kind = "none"'
            )
        return self

    @property
    def uses_time(self) -> bool:
        """Return whether the interest uses the times of events and candidates, apart from the encoder."""
        return self.kind == "attention" and self.attention.uses_time


def check_encoder(encoder: EncoderConfig) -> None:
    """Raise ValueError for an encoder that is not causal.

    Its events would depend on other impressions, or on events after a candidate.
    """
    if encoder.positions == "learned":
        raise ValueError(
            'encoder.positions = "learned" counts from the first event kept, which differs between the impressions of a '
            'history: choose "rotary", or "none" with encoder.attention.bias = "position" or "time"'
        )
    if encoder.bidirectional:
        raise ValueError(
            'encoder.attention.mask = "bidirectional": candidates would receive information from later events; choose "causal"'
        )
    if encoder.output_head != "none":
        raise ValueError('encoder.output_head applies to next-item models only; leave it at "none"')
    if encoder.num_blocks and encoder.attention.num_global:
        raise ValueError(
            f"encoder.attention.num_global = {encoder.attention.num_global} counts from the oldest event kept, which differs "
            "between the impressions of a history: set it to 0; for older events, widen or unset encoder.attention.window"
        )
    if encoder.truncate_after is not None:
        raise ValueError(
            "encoder.truncate_after keeps the newest events of a history, which differ between its impressions: unset it and "
            "encoder.truncate_to; for less work in all blocks, set encoder.attention.window or lower max_history"
        )
    if encoder.merge_size is not None:
        raise ValueError(
            "encoder.merge_size merges the events before the newest ones of a history, and an impression in between would receive "
            "later events: unset it and encoder.merge_recent; for less work, set encoder.attention.window or lower max_history"
        )
    if encoder.item_tower:
        raise ValueError("encoder.item_tower applies to next-item models only; leave it at []")
