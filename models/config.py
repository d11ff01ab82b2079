"""Typed settings of a model. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field

from models.encoders.config import EncoderConfig
from models.features.config import InputsConfig
from models.objectives.config import FullSoftmaxConfig, ObjectiveConfig


class MaskingConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Which events are masked and restored in training: for encoders that see both sides of an event (BERT4Rec)."""

    probability: float = Field(
        0.2, gt=0.0, lt=1.0, description="of each event of a training history to be masked; at least one is"
    )
    last_probability: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="of each history to have its last event masked, and no other: what the encoder sees in evaluation",
    )


class ModelConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """What models of both tasks have: an encoder of histories, and what it is told."""

    task: Literal["next_item", "ranking"]
    max_history: int = Field(
        200,
        ge=1,
        le=65536,
        description="events of a history that the encoder sees: the most recent ones; in ranking, how many events a "
        "candidate or an event attends to in each layer at most",
    )
    inputs: InputsConfig = Field(
        default_factory=InputsConfig, description="what the encoder is told of an event besides its item"
    )
    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="turns a history into vectors")

    @property
    def uses_time(self) -> bool:
        """Return whether the model uses times, so that batches have to contain them."""
        return bool(self.inputs.time) or self.inputs.request_time or self.encoder.uses_time


class NextItemConfig(ModelConfig):
    """A model of the next event of a history, out of the whole catalogue."""

    task: Literal["next_item"] = Field(
        "next_item",
        description="what is learned: next_item, the next event of a history out of the whole catalogue",
    )
    objective: ObjectiveConfig = Field(default_factory=FullSoftmaxConfig, description="what the training minimises")
    masking: MaskingConfig = Field(
        default_factory=MaskingConfig, description="of encoders that see both sides of an event"
    )

    @property
    def masks_items(self) -> bool:
        """Return whether the model learns masked events instead of the event after each."""
        return self.encoder.bidirectional
