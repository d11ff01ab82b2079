"""What a model is made of, as typed settings. Imports no torch."""

from typing import Annotated, Literal

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


class FullSoftmaxConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Cross-entropy over the whole catalogue, computed without holding all logits."""

    kind: Literal["full_softmax"] = Field("full_softmax", description="which objective")
    normalize: bool = Field(False, description="score by cosine: divide user and item vectors by their lengths")
    temperature: float = Field(1.0, gt=0.0, description="scores are divided by this number")


class SampledSoftmaxConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Cross-entropy of the target against negatives shared by the whole global batch."""

    kind: Literal["sampled_softmax"] = Field("sampled_softmax", description="which objective")
    num_negatives: int = Field(
        512, ge=1, description="negatives per step, drawn uniformly with replacement, the same for every target"
    )
    normalize: bool = Field(False, description="score by cosine: divide user and item vectors by their lengths")
    temperature: float = Field(1.0, gt=0.0, description="scores are divided by this number")


EncoderConfig = SASRecConfig
ObjectiveConfig = Annotated[FullSoftmaxConfig | SampledSoftmaxConfig, Field(discriminator="kind")]


class ModelConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The model: a task, an encoder of histories, an objective."""

    task: Literal["next_item"] = Field(
        "next_item", description="what is learned: the next event of a history, out of the whole catalogue"
    )
    max_history: int = Field(
        200, ge=1, le=65536, description="events of a history that the encoder sees: the most recent ones"
    )
    encoder: EncoderConfig = Field(default_factory=SASRecConfig, description="turns a history into vectors")
    objective: ObjectiveConfig = Field(default_factory=FullSoftmaxConfig, description="what the training minimises")
