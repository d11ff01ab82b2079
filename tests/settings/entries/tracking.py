"""Entries of [tracking]."""

from tests.settings.entry import Entry
from tests.settings.observations.tracking import calls_of, traces

READS = "receives numbers of a training, and changes none"
MLFLOW = {"tracking.mlflow": "sqlite:///x.db"}
WANDB = {"tracking.wandb": "team/shoal"}

ENTRIES = (
    Entry("tracking.mlflow", "sqlite:///x.db", calls_of("mlflow"), "sqlite:///x.db", free=READS),
    Entry("tracking.mlflow_experiment", "other", calls_of("experiment"), "other", base=MLFLOW, free=READS),
    Entry("tracking.wandb", "team/shoal", calls_of("wandb"), ("team", "shoal"), free=READS),
    Entry("tracking.wandb_mode", "offline", calls_of("mode"), "offline", base=WANDB, free=READS),
    Entry("tracking.profile_steps", [2], traces, ["step-2-rank-0.json"], free="traces change no result"),
)
