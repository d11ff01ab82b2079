"""Settings of rankers. Imports no torch.

docs/ranking.md has the formula of each part.
"""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from models.attention.config import preset
from models.config import ModelConfig
from models.ranking.interest_config import InterestConfig, check_encoder
from models.ranking.presets import PRESETS, RankerKind

ActivationKind = Literal["relu", "prelu", "dice"]


class CrossingConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Products of fields, which layers of sums and activations learn slowly."""

    kind: Literal["none", "dcn_v2", "fm"] = Field(
        "none",
        description="dcn_v2: layers that multiply the concatenated fields by a learned map of the previous layer; fm: the sum "
        "of products of all pairs of fields, in addition to the fields",
    )
    num_layers: int = Field(
        2, ge=1, le=16, description="dcn_v2: number of layers, each of which raises the degree by one"
    )
    rank: int = Field(
        32, ge=1, description="dcn_v2: rank of the map of each layer; fm: width in which fields are multiplied"
    )


class ExpertsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Layers between the fields and the logits of labels: those that labels share, and those of each label."""

    kind: Literal["shared_bottom", "mmoe", "ple"] = Field(
        "shared_bottom",
        description="shared_bottom: one network for all labels; mmoe: experts that each label mixes with its own gate (MMoE); "
        "ple: shared experts and experts per label, mixed in the same way (PLE)",
    )
    hidden: list[int] = Field(
        default_factory=lambda: [128, 64],
        description="widths of the layers of the shared network, or of each expert. With [] and an empty `tower`, the logits "
        "of shared_bottom are linear in the fields",
    )
    num_experts: int = Field(4, ge=1, le=64, description="number of experts of mmoe, or of shared experts of ple")
    num_label_experts: int = Field(1, ge=1, le=16, description="ple: number of experts per label")
    num_levels: int = Field(1, ge=1, le=8, description="ple: number of levels of experts")
    tower: list[int] = Field(
        default_factory=list, description="widths of the hidden layers of each label between these layers and its logit"
    )
    activation: ActivationKind = Field(
        "relu",
        description="activation of hidden layers: relu; prelu, with a learned slope below zero; dice (DIN), with a gate at the "
        "unit's mean",
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="dropout probability of activations of hidden layers, in steps of 1/256"
    )

    @model_validator(mode="after")
    def _experts_have_layers(self) -> "ExpertsConfig":
        if self.kind != "shared_bottom" and not self.hidden:
            raise ValueError(f"hidden = [] leaves the experts of {self.kind} without layers; name widths such as [64]")
        if any(width < 1 for width in (*self.hidden, *self.tower)):
            raise ValueError(f"hidden = {self.hidden}, tower = {self.tower}: widths must be at least 1")
        return self


class LabelConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Learning of a label. An impression is positive if the label is above 0."""

    weight: float = Field(1.0, gt=0.0, description="weight of its loss among those of all labels")
    loss: Literal["bce", "focal", "pairwise", "listwise"] = Field(
        "bce",
        description="bce: binary cross-entropy; focal: bce with smaller weights for easy impressions; pairwise: logistic loss "
        "over pairs of a positive and a negative of one user; listwise: softmax over the impressions of one user",
    )
    focusing: float = Field(2.0, ge=0.0, le=10.0, description="focal: its gamma. 0 is bce")
    bce_share: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="pairwise and listwise: share of bce in the loss. With 0, scores rank but are not probabilities",
    )
    defined_when: str | None = Field(
        None,
        description="another label of the logs. This label is learned only where that label is above 0, as a conditional "
        "probability; default: learned on all impressions",
    )
    entire_space: bool = Field(
        False,
        description="learn the product of the probabilities of this label and of `defined_when` on all impressions (ESMM), in "
        "place of this label on some",
    )

    @model_validator(mode="after")
    def _entire_space_has_a_condition(self) -> "LabelConfig":
        if self.entire_space and self.defined_when is None:
            raise ValueError(
                "entire_space = true needs defined_when: the label with the probability that multiplies this one's"
            )
        return self


class RankingConfig(ModelConfig):
    """A model that predicts the labels of impressions. `kind` determines the defaults (docs/ranking.md)."""

    task: Literal["ranking"] = Field(
        "ranking", description="the task: ranking predicts the labels of impressions from the history before each"
    )
    kind: RankerKind = Field(
        "din",
        description="published ranker that sets the defaults: DIN, BST, HSTU with candidates as targets, SIM, an "
        "average of the events, or logistic regression without history",
    )
    interest: InterestConfig = Field(
        default_factory=InterestConfig, description="how a candidate is compared with the history of its user"
    )
    crossing: CrossingConfig = Field(default_factory=CrossingConfig, description="products of fields")
    experts: ExpertsConfig = Field(default_factory=ExpertsConfig, description="layers between fields and labels")
    labels: dict[str, LabelConfig] = Field(
        default_factory=dict,
        description="labels to learn, by name. {} learns all of logs.labels with default settings",
    )
    negative_sampling: Literal["offset", "weight", "none"] = Field(
        "offset",
        description="correction for logs that contain a share of the impressions without any label "
        "(logs.negative_sampling_rate), so that probabilities refer to the full log. offset: of logits, exact for a label that "
        "is 0 only where all are; weight: weights of these impressions, right for each label but noisier; none: no correction",
    )

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_kind(cls, values: Any) -> Any:
        kind = values.get("kind", "din") if isinstance(values, dict) else None
        return preset(PRESETS.get(kind, {}), values) if isinstance(kind, str) else values

    @model_validator(mode="after")
    def _no_event_tells_the_future(self) -> "RankingConfig":
        if self.interest.kind != "none":
            check_encoder(self.encoder)
        return self

    @model_validator(mode="after")
    def _candidates_have_norms(self) -> "RankingConfig":
        encoder = self.encoder
        if encoder.candidate_norms and (self.interest.kind != "encoder" or not encoder.num_blocks):
            raise ValueError(
                "encoder.candidate_norms = true needs candidates that pass through the blocks of the encoder: set "
                'interest.kind = "encoder" and encoder.num_blocks above 0, or leave it at false'
            )
        return self

    @property
    def time_settings(self) -> list[str]:
        """Return the settings by which the model uses times, with their values."""
        of_interest = f"interest.attention.bias = {self.interest.attention.bias!r}"
        return [*super().time_settings, *([of_interest] if self.interest.uses_time else [])]

    @property
    def searched_feature(self) -> str | None:
        """Return the feature of items by which a candidate searches the history, or None."""
        return self.interest.search.feature

    @model_validator(mode="after")
    def _conditions_end(self) -> "RankingConfig":
        for name, label in self.labels.items():
            if label.entire_space and label.defined_when not in self.labels:
                raise ValueError(
                    f"labels.{name}.entire_space = true multiplies by the probability of {label.defined_when!r}, which is not "
                    f"learned; add labels.{label.defined_when}, or set entire_space = false"
                )
            chain = [name]
            while (condition := self.labels[chain[-1]].defined_when) in self.labels:
                assert condition is not None
                if condition in chain:
                    raise ValueError(f"labels: defined_when forms a cycle: {' -> '.join([*chain, condition])}")
                chain.append(condition)
        return self


def learned_labels(config: RankingConfig, known: Iterable[str]) -> dict[str, LabelConfig]:
    """Return the labels that a model learns, in order. `known`: the labels of the dataset.

    Raises ValueError for a label that the dataset does not have.
    """
    known = tuple(known)
    labels = config.labels or {name: LabelConfig() for name in known}
    for name, label in labels.items():
        for required, setting in ((name, f"labels.{name}"), (label.defined_when, f"labels.{name}.defined_when")):
            if required is not None and required not in known:
                raise ValueError(
                    f"model.{setting}: there is no label {required!r} in the logs; there are {', '.join(known)}"
                )
    return labels
