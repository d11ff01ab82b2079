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
    """Products of fields, which layers of sums and activations learn only slowly."""

    kind: Literal["none", "dcn_v2", "fm"] = Field(
        "none",
        description="none; dcn_v2, layers that multiply the concatenated fields by a learned map of what was crossed before; fm, "
        "the sum of products of all pairs of fields, beside the fields themselves",
    )
    num_layers: int = Field(2, ge=1, le=16, description="of dcn_v2: crosses of one degree more each")
    rank: int = Field(
        32, ge=1, description="of dcn_v2, the rank of each layer's map; of fm, the width in which fields are multiplied"
    )


class ExpertsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The layers between the fields and the logits of labels: what labels share, and what each has alone."""

    kind: Literal["shared_bottom", "mmoe", "ple"] = Field(
        "shared_bottom",
        description="one network for all labels; experts that each label mixes by a gate of its own (MMoE); or shared experts and "
        "experts of each label, mixed likewise (PLE)",
    )
    hidden: list[int] = Field(
        default_factory=lambda: [128, 64],
        description="widths of the layers of the shared network, or of each expert; with [] the logits of shared_bottom are linear "
        "in the fields, if `tower` is empty as well",
    )
    num_experts: int = Field(4, ge=1, le=64, description="experts of mmoe, shared experts of ple")
    num_label_experts: int = Field(1, ge=1, le=16, description="of ple: experts that each label has alone")
    num_levels: int = Field(1, ge=1, le=8, description="of ple: levels of experts on top of each other")
    tower: list[int] = Field(
        default_factory=list, description="widths of the hidden layers between these and the logit, of each label alone"
    )
    activation: ActivationKind = Field(
        "relu",
        description="of hidden layers: relu; prelu, with a learned slope below zero; or dice (DIN), with a gate at the unit's mean",
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="probability of dropping an activation of a hidden layer; in steps of 1/256"
    )

    @model_validator(mode="after")
    def _experts_have_layers(self) -> "ExpertsConfig":
        if self.kind != "shared_bottom" and not self.hidden:
            raise ValueError(f"hidden = [] leaves the experts of {self.kind} without layers; name widths such as [64]")
        if any(width < 1 for width in (*self.hidden, *self.tower)):
            raise ValueError(f"hidden = {self.hidden}, tower = {self.tower}: widths must be at least 1")
        return self


class LabelConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """How one label is learned. An impression is positive where the label is above 0."""

    weight: float = Field(1.0, gt=0.0, description="of its loss among those of the other labels")
    loss: Literal["bce", "focal", "pairwise", "listwise"] = Field(
        "bce",
        description="binary cross-entropy; focal, the same with easy impressions weighed down; pairwise, logistic over pairs of a "
        "positive and a negative of one user; listwise, softmax over one user's impressions",
    )
    focusing: float = Field(2.0, ge=0.0, le=10.0, description="gamma of focal: 0 is bce")
    bce_share: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="of pairwise and listwise: the share of bce beside them, without which scores rank but are no probabilities",
    )
    defined_when: str | None = Field(
        None,
        description="another label of the logs: this one is learned only where that is above 0, and is given that it is",
    )
    entire_space: bool = Field(
        False,
        description="learn the product of this label's probability and that of `defined_when` on all impressions (ESMM), in place "
        "of this label's on some",
    )

    @model_validator(mode="after")
    def _entire_space_has_a_condition(self) -> "LabelConfig":
        if self.entire_space and self.defined_when is None:
            raise ValueError(
                "entire_space = true needs defined_when: the label whose probability this one's is multiplied by"
            )
        return self


class RankingConfig(ModelConfig):
    """A model of what becomes of impressions. Defaults are those of its `kind` (docs/attention.md)."""

    task: Literal["ranking"] = Field(
        "ranking", description="what is learned: ranking, the labels of impressions from the history before each"
    )
    kind: RankerKind = Field(
        "din",
        description="the published ranker that the other settings start from: DIN, BST, HSTU with candidates as targets, SIM, an "
        "average of the events, or logistic regression without history",
    )
    interest: InterestConfig = Field(
        default_factory=InterestConfig, description="how a candidate meets the history of its user"
    )
    crossing: CrossingConfig = Field(default_factory=CrossingConfig, description="products of fields")
    experts: ExpertsConfig = Field(default_factory=ExpertsConfig, description="layers between fields and labels")
    labels: dict[str, LabelConfig] = Field(
        default_factory=dict,
        description="the labels that are learned, by name; {} takes all of logs.labels as they are",
    )
    negative_sampling: Literal["offset", "weight", "none"] = Field(
        "offset",
        description="how training allows for logs that kept a share of the impressions without any label "
        "(logs.negative_sampling_rate), so that probabilities are those of the full log: by an offset of logits, exact for a label "
        "that is 0 only where all are; by weighing these impressions, right for every label but noisier; or not at all",
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

    @property
    def uses_time(self) -> bool:
        """Return whether the model uses times, so that batches have to contain them."""
        return super().uses_time or self.interest.uses_time

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
