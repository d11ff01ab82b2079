"""Settings of the encoders of histories. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field


class SASRecConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """SASRec (Kang & McAuley 2018, arXiv:1808.09781): causal self-attention with learned positions."""

    kind: Literal["sasrec"] = Field("sasrec", description="which encoder")
    num_blocks: int = Field(2, ge=1, le=64, description="attention blocks on top of each other")
    num_heads: int = Field(1, ge=1, le=64, description="attention heads; must divide the width of the item table")
    feed_forward_multiple: int = Field(
        1,
        ge=1,
        le=16,
        description="width of the hidden layer of the feed-forward part, in multiples of the model width",
    )
    dropout: float = Field(
        0.2, ge=0.0, lt=1.0, description="probability of dropping an activation; applied in steps of 1/256"
    )


EncoderConfig = SASRecConfig
