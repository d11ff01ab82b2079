"""Python API: load a config, run its stages, and read the results of runs.

    config = shoal.Config.load("mine.toml", {"train.epochs": 3})
    result = shoal.run(config)
    print(result.evaluation.metrics["ndcg@10"])

The functions do what the commands of the same name do, with the same results and files. Errors are exceptions.
Importing this package imports neither torch nor ray. docs/python.md is the guide.

Files:
    commands.py     the functions run, prepare, train and evaluate
    comparisons.py  the function compare
    config.py       settings of a run, from a file or a dictionary
    events.py       events that report the progress of a command
    model.py        a trained model in this process: recommendations, scores, vectors
    results.py      results of commands, as values
    runs.py         runs on disk: stages, metrics, checkpoints
    view.py         relays what the driver reports to a listener
"""

from cluster import __version__
from cluster.errors import RunFailedError, StoppedError
from shoal.commands import evaluate, prepare, run, train
from shoal.comparisons import Comparison, Difference, compare
from shoal.config import Config
from shoal.events import (
    CheckpointSaved,
    DayEvaluated,
    Event,
    Message,
    Planned,
    Progress,
    Restarted,
    Resumed,
    Stage,
    TrainingStep,
    Validation,
    WarningRaised,
)
from shoal.model import ImpressionRanker, NextItemRecommender, load
from shoal.results import Dataset, Evaluation, Metric, RunResult, Training
from shoal.runs import Run
from trainer.errors import CheckpointError, UserError

__all__ = [
    "CheckpointError",
    "CheckpointSaved",
    "Comparison",
    "Config",
    "Dataset",
    "DayEvaluated",
    "Difference",
    "Evaluation",
    "Event",
    "ImpressionRanker",
    "Message",
    "Metric",
    "NextItemRecommender",
    "Planned",
    "Progress",
    "Restarted",
    "Resumed",
    "Run",
    "RunFailedError",
    "RunResult",
    "Stage",
    "StoppedError",
    "Training",
    "TrainingStep",
    "UserError",
    "Validation",
    "WarningRaised",
    "__version__",
    "compare",
    "evaluate",
    "load",
    "prepare",
    "run",
    "train",
]
