"""The section `[checkpoint]`."""

from typing import Literal

from pydantic import BaseModel, Field


class CheckpointConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Times at which checkpoints are saved, and the number that is kept."""

    every_steps: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints. Evaluations, stops and the end also save one; default: no further checkpoints",
    )
    keep: int = Field(2, ge=1, description="number of newest checkpoints to keep, in addition to the best one")
    background: bool = Field(
        True,
        description="write checkpoints while training continues, from a copy of the tensors in memory. Without memory for the "
        "copy, and if false, training waits for the files",
    )
    on_error: Literal["stop", "continue"] = Field(
        "stop",
        description="what to do if a checkpoint cannot be written, as on a full disk. stop: end the run with the cause; continue: "
        "warn, and train on until the next one. The last checkpoint of a training must be written in either case",
    )
