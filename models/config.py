"""Typed settings of a model. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from models.encoders.config import EncoderConfig
from models.features.config import InputsConfig
from models.objectives.config import FullSoftmaxConfig, ObjectiveConfig


class MaskingConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Masked events in training, for encoders that see both sides of an event (BERT4Rec). The model learns to restore them."""

    probability: float = Field(
        0.2,
        gt=0.0,
        lt=1.0,
        description="probability that an event of a training history is masked. At least one event is",
    )
    last_probability: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="probability that a history has only its last event masked, as in evaluation",
    )


class ModelConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Settings of the models of both tasks."""

    task: Literal["next_item", "ranking"]
    max_history: int = Field(
        200,
        ge=1,
        le=65536,
        description="number of most recent events of a history that the encoder receives. In ranking: maximum number of events "
        "that a candidate or an event attends to in each layer",
    )
    inputs: InputsConfig = Field(default_factory=InputsConfig, description="inputs of the encoder besides items")
    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="turns a history into vectors")

    @property
    def uses_time(self) -> bool:
        """Return whether the model uses times, so that batches have to contain them."""
        return bool(self.time_settings)

    @property
    def time_settings(self) -> list[str]:
        """Return the settings by which the model uses times, with their values."""
        uses = {
            f"inputs.time = {self.inputs.time}": bool(self.inputs.time),
            "inputs.request_time": self.inputs.request_time,
            f"encoder.attention.bias = {self.encoder.attention.bias!r}": self.encoder.uses_time,
        }
        return [setting for setting, is_used in uses.items() if is_used]

    @property
    def searched_feature(self) -> str | None:
        """Return the feature of items by which a candidate searches the history, or None."""
        return None


class NextItemConfig(ModelConfig):
    """A model that predicts the next event of a history over the whole catalogue."""

    task: Literal["next_item"] = Field(
        "next_item",
        description="the task: next_item predicts the next event of a history over the whole catalogue",
    )
    objective: ObjectiveConfig = Field(
        default_factory=FullSoftmaxConfig, description="the loss that training minimises"
    )
    masking: MaskingConfig = Field(
        default_factory=MaskingConfig, description="masked events, for encoders that see both sides of an event"
    )

    later_targets: int = Field(
        0,
        ge=0,
        le=16,
        description="number of events after the next one that each event also predicts in training, each with a head of its own. "
        "Scores are those of the next event",
    )
    later_weight: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="weight of the loss of the first later target. That of each further one is smaller by the same factor",
    )
    stochastic_length: float | None = Field(
        None,
        gt=0.0,
        lt=2.0,
        description="exponent alpha of HSTU's stochastic length: in training a history of n events, more than m = "
        "max_history^(alpha / 2), keeps m of them, other ones in each epoch, or all with probability (m / n)^2; default: all",
    )

    @model_validator(mode="after")
    def _later_targets_follow(self) -> "NextItemConfig":
        if self.later_targets and self.masks_items:
            raise ValueError(
                f"later_targets = {self.later_targets} are events after the next one, and this model restores masked events: set "
                'it to 0, or choose encoder.attention.mask = "causal"'
            )
        return self

    @model_validator(mode="after")
    def _stochastic_length_fits(self) -> "NextItemConfig":
        if self.stochastic_length is not None and self.masks_items:
            raise ValueError(
                "stochastic_length leaves out events, and a model that restores masked events needs those around them: unset "
                'it, or choose encoder.attention.mask = "causal"'
            )
        return self

    @model_validator(mode="after")
    def _newest_events_are_fewer(self) -> "NextItemConfig":
        kept = self.encoder.truncate_to
        if kept is not None and kept >= self.max_history:
            raise ValueError(
                f"encoder.truncate_to = {kept} must be below max_history = {self.max_history}: no history is longer than that"
            )
        whole = self.encoder.merge_recent
        if whole is not None and whole >= self.max_history:
            raise ValueError(
                f"encoder.merge_recent = {whole} must be below max_history = {self.max_history}: no history is longer, so no event "
                "would be merged"
            )
        return self

    @model_validator(mode="after")
    def _has_no_candidates(self) -> "NextItemConfig":
        if self.encoder.candidate_norms:
            raise ValueError(
                "encoder.candidate_norms = true is for rankers: no candidate passes through the blocks of a next-item model; leave "
                "it at false"
            )
        return self

    @property
    def masks_items(self) -> bool:
        """Return whether the model learns masked events instead of the event after each."""
        return self.encoder.bidirectional
