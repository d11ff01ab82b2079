"""The section `[checkpoint]`."""

from pydantic import BaseModel, Field


class CheckpointConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Times at which checkpoints are saved, and the number that is kept."""

    every_steps: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints. Evaluations, stops and the end also save one; default: no further checkpoints",
    )
    keep: int = Field(2, ge=1, description="number of newest checkpoints to keep, in addition to the best one")
