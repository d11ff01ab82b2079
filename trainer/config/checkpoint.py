"""The section `[checkpoint]`."""

from pydantic import BaseModel, Field


class CheckpointConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """When checkpoints are saved, and how many are kept."""

    every_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints, besides those at evaluations, stops and the end"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept; the best one is kept besides")
