"""The section `[guards]`: watching of a training for values that are wrong without being infinite."""

from typing import Literal

from pydantic import BaseModel, Field


class LossSpikesConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Detection of losses far above the recent ones. The presence of the table turns it on."""

    action: Literal["warn", "skip"] = Field(
        "warn",
        description="what to do about a step with such a loss. warn: apply it, and say so; skip: no worker applies it, and "
        "metrics.jsonl has the rows of its batch",
    )
    deviations: float = Field(
        10.0,
        gt=0.0,
        description="distance from the median of the recent losses above which a loss is a spike, in standard deviations as "
        "estimated by the median absolute deviation (and at least in hundredths of the median)",
    )
    window: int = Field(
        64,
        ge=8,
        le=10_000,
        description="number of recent losses of applied steps. Detection begins when there are so many",
    )
    max_skipped: int = Field(
        10, ge=0, description="consecutive steps that may be skipped. One more ends the run, since the losses stay high"
    )


class GuardsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Guards of a training. Non-finite values are always guarded against (train.max_nonfinite_steps)."""

    loss_spikes: LossSpikesConfig | None = Field(
        None, description="detection of losses far above the recent ones; default: off"
    )
