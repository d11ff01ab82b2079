"""Settings of what the training minimises. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field


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


ObjectiveConfig = Annotated[FullSoftmaxConfig | SampledSoftmaxConfig, Field(discriminator="kind")]
