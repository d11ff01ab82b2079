"""The section `[tracking]`: where metrics of a training go besides metrics.jsonl and TensorBoard, and traces of chosen steps.

Imports neither torch nor a tracker. Credentials come from the environment of the workers only.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class TrackingConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Trackers of experiments, and traces of the profiler. The first rank writes to trackers."""

    mlflow: str | None = Field(
        None,
        description="tracking URI of MLflow, such as sqlite:////data/mlflow.db or http://HOST:5000; default: not used",
    )
    mlflow_experiment: str = Field("shoal", min_length=1, description="name of the experiment in MLflow")
    wandb: str | None = Field(
        None, min_length=1, description="project of Weights & Biases, with or without its entity; default: not used"
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online", description="offline: write to wandb/ in the run folder only, for `wandb sync`"
    )
    profile_steps: list[Annotated[int, Field(ge=1)]] = Field(
        [],
        description="steps of which each worker writes a trace of torch's profiler to profile/ in the run folder. The first steps "
        "of a command are slower than others",
    )
