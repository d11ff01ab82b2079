"""What a model is made of, as typed settings. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field

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
        """Whether the model looks at times, so that they have to be in batches."""
        return bool(self.time_settings)

    @property
    def time_settings(self) -> list[str]:
        """The settings of the model by which it looks at times, with their values."""
        asking = {
            f"inputs.time = {self.inputs.time}": bool(self.inputs.time),
            "inputs.request_time": self.inputs.request_time,
            f"encoder.attention.bias = {self.encoder.attention.bias!r}": self.encoder.uses_time,
        }
        return [setting for setting, asks in asking.items() if asks]

    @property
    def searched_feature(self) -> str | None:
        """The feature of items by which a candidate searches the history, or None."""
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

    @property
    def masks_items(self) -> bool:
        """Whether masked events are what is learned, in place of the event after each."""
        return self.encoder.bidirectional
