"""Settings of the objectives of training. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


class UniformNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """Every item that the training part knows, equally likely. Alike on every worker."""

    kind: Literal["uniform"] = Field("uniform", description="where negatives come from")


class PopularityNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """Items by their number of training events, to a power. Alike on every worker."""

    kind: Literal["popularity"] = Field("popularity", description="where negatives come from")
    power: float = Field(
        0.75,
        ge=0.0,
        le=2.0,
        description="an item is drawn in proportion to its training events to this power; 0 is uniform",
    )


class InBatchNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """Targets of the worker's own share of the batch: what is learned depends on the number of workers."""

    kind: Literal["in_batch"] = Field("in_batch", description="where negatives come from")


class CrossRankNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """Targets of the global batch, alike on every worker: one small exchange of ids more for each step."""

    kind: Literal["cross_rank"] = Field("cross_rank", description="where negatives come from")


class MixedNegatives(BaseModel, extra="forbid", frozen=True, strict=True):
    """A share drawn uniformly, the rest from the targets of the global batch (Yang et al. 2020)."""

    kind: Literal["mixed"] = Field("mixed", description="where negatives come from")
    uniform_share: float = Field(
        0.5,
        gt=0.0,
        lt=1.0,
        description="share of the negatives that is drawn uniformly, rounded to a whole number of them",
    )


NegativesConfig = Annotated[
    UniformNegatives | PopularityNegatives | InBatchNegatives | CrossRankNegatives | MixedNegatives,
    Field(discriminator="kind"),
]


class FullSoftmaxConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Cross-entropy over the whole catalogue, computed without holding all logits."""

    kind: Literal["full_softmax"] = Field("full_softmax", description="which objective")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the target's probability that is spread evenly over the catalogue"
    )
    normalize: bool = Field(False, description="score by cosine: divide user and item vectors by their lengths")
    temperature: float = Field(1.0, gt=0.0, description="scores are divided by this number")


class SampledObjectiveConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """What objectives have in common that compare a target with negatives. All targets of a worker share theirs."""

    num_negatives: int = Field(
        512, ge=1, description="negatives per step, drawn with replacement, the same for every target of a worker"
    )
    negatives: NegativesConfig = Field(default_factory=UniformNegatives, description="where negatives come from")
    logq: Literal["none", "counts", "streaming"] = Field(
        "none",
        description="correct scores for how likely an item is drawn: not at all, by the probability that follows from settings "
        "and training part, or by an estimate of how often it is a target, kept up to date while training",
    )
    logq_rate: float = Field(
        0.01,
        gt=0.0,
        le=1.0,
        description='of `logq = "streaming"`: weight of a new observation of an item in its estimate',
    )
    normalize: bool = Field(False, description="score by cosine: divide user and item vectors by their lengths")
    temperature: float = Field(1.0, gt=0.0, description="scores are divided by this number")

    @model_validator(mode="after")
    def _estimated_only_what_is_not_known(self) -> "SampledObjectiveConfig":
        if self.logq == "streaming" and isinstance(self.negatives, UniformNegatives | PopularityNegatives):
            raise ValueError(
                f'logq = "streaming" estimates how often an item is a target, and {self.negatives.kind} negatives are not drawn '
                'from targets: choose logq = "counts", which uses their exact probability'
            )
        return self


class SampledSoftmaxConfig(SampledObjectiveConfig):
    """Cross-entropy of the target against negatives."""

    kind: Literal["sampled_softmax"] = Field("sampled_softmax", description="which objective")


class BceConfig(SampledObjectiveConfig):
    """Binary cross-entropy: targets are to score above zero, negatives below (Kang & McAuley 2018, arXiv:1808.09781)."""

    kind: Literal["bce"] = Field("bce", description="which objective")
    negatives_per_target: float = Field(
        1.0,
        gt=0.0,
        description="the negatives together weigh as much as this many of them; SASRec has one for each target",
    )
    balanced: bool = Field(
        True,
        description="count scores from where target and negatives weigh the same, so that training need not begin by pushing all "
        "scores down; false is the plain form",
    )


class GbceConfig(SampledObjectiveConfig):
    """Binary cross-entropy with the targets' part calibrated to the number of negatives (Petrov & Macdonald 2023)."""

    kind: Literal["gbce"] = Field("gbce", description="which objective")
    calibration: float = Field(
        0.75,
        ge=0.0,
        le=1.0,
        description="t of the paper: 0 is plain binary cross-entropy, 1 undoes all of the overconfidence that sampling brings",
    )
    balanced: bool = Field(
        True,
        description="count scores from where target and negatives weigh the same, so that training need not begin by pushing all "
        "scores down; false is the plain form",
    )


ObjectiveConfig = Annotated[
    FullSoftmaxConfig | SampledSoftmaxConfig | BceConfig | GbceConfig, Field(discriminator="kind")
]
