"""Settings of what the training minimises. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


class UniformNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """All items of the training part with the same probability. Identical on all workers."""

    kind: Literal["uniform"] = Field("uniform", description="source of negatives")


class PopularityNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """Items in proportion to a power of their number of training events. Identical on all workers."""

    kind: Literal["popularity"] = Field("popularity", description="source of negatives")
    power: float = Field(
        0.75,
        ge=0.0,
        le=2.0,
        description="exponent of the number of training events. 0 is uniform",
    )


class InBatchNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """Targets of the worker's own share of the batch. Results then depend on the number of workers."""

    kind: Literal["in_batch"] = Field("in_batch", description="source of negatives")


class CrossRankNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """Targets of the global batch, identical on all workers. They cost one small exchange of ids per step."""

    kind: Literal["cross_rank"] = Field("cross_rank", description="source of negatives")


class MixedNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """A share drawn uniformly, the rest from the targets of the global batch (Yang et al. 2020)."""

    kind: Literal["mixed"] = Field("mixed", description="source of negatives")
    uniform_share: float = Field(
        0.5,
        gt=0.0,
        lt=1.0,
        description="share of negatives that are drawn uniformly, rounded to a whole number",
    )


NegativesConfig = Annotated[
    UniformNegatives | PopularityNegatives | InBatchNegatives | CrossRankNegatives | MixedNegatives,
    Field(discriminator="kind"),
]


class FullSoftmaxConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Cross-entropy over the whole catalogue, computed without storing all logits."""

    kind: Literal["full_softmax"] = Field("full_softmax", description="objective")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the target's probability that is spread evenly over the catalogue"
    )
    normalize: bool = Field(
        False, description="score by cosine similarity: divide user and item vectors by their lengths"
    )
    temperature: float = Field(1.0, gt=0.0, description="divisor of scores")


class SampledObjectiveConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Objectives that compare a target with negatives. All targets of a worker share the same negatives."""

    num_negatives: int = Field(
        512, ge=1, description="negatives per step, drawn with replacement, the same for all targets of a worker"
    )
    negatives: NegativesConfig = Field(default_factory=UniformNegatives, description="source of negatives")
    logq: Literal["none", "counts", "streaming"] = Field(
        "none",
        description="logQ correction of scores. counts: by the sampling probability that follows from the settings and the "
        "training part; streaming: by a running estimate of how often an item is a target",
    )
    logq_rate: float = Field(
        0.01,
        gt=0.0,
        le=1.0,
        description='logq = "streaming": weight of a new observation of an item in its estimate',
    )
    normalize: bool = Field(
        False, description="score by cosine similarity: divide user and item vectors by their lengths"
    )
    temperature: float = Field(1.0, gt=0.0, description="divisor of scores")

    @model_validator(mode="after")
    def _estimated_only_what_is_not_known(self) -> "SampledObjectiveConfig":
        if self.logq == "streaming" and isinstance(self.negatives, UniformNegatives | PopularityNegatives):
            raise ValueError(
                f'logq = "streaming" estimates how often an item is a target, and {self.negatives.kind} negatives are not drawn '
                'from targets: choose logq = "counts", which knows their probability'
            )
        return self


class SampledSoftmaxConfig(SampledObjectiveConfig):
    """Cross-entropy of the target against negatives."""

    kind: Literal["sampled_softmax"] = Field("sampled_softmax", description="objective")


class BceConfig(SampledObjectiveConfig):
    """Binary cross-entropy: targets should score above zero, negatives below (Kang & McAuley 2018, arXiv:1808.09781)."""

    kind: Literal["bce"] = Field("bce", description="objective")
    negatives_per_target: float = Field(
        1.0,
        gt=0.0,
        description="total weight of all negatives, in units of one negative per target. SASRec has one negative per target",
    )
    balanced: bool = Field(
        True,
        description="shift scores to the point where target and negatives have equal weight, so that training does not start "
        "by lowering all scores. false is the plain form",
    )


class GbceConfig(SampledObjectiveConfig):
    """Binary cross-entropy whose positive term is calibrated to the number of negatives (Petrov & Macdonald 2023)."""

    kind: Literal["gbce"] = Field("gbce", description="objective")
    calibration: float = Field(
        0.75,
        ge=0.0,
        le=1.0,
        description="t of the paper: 0 is plain binary cross-entropy, 1 removes all overconfidence caused by sampling",
    )
    balanced: bool = Field(
        True,
        description="shift scores to the point where target and negatives have equal weight, so that training does not start "
        "by lowering all scores. false is the plain form",
    )


ObjectiveConfig = Annotated[
    FullSoftmaxConfig | SampledSoftmaxConfig | BceConfig | GbceConfig, Field(discriminator="kind")
]
