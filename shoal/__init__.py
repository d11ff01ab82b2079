"""Python API: load a config, run its stages, and read the results of runs.

    config = shoal.Config.load("mine.toml", {"train.epochs": 3})
    result = shoal.run(config)
    print(result.evaluation.metrics["ndcg@10"])

The functions do what the commands of the same name do, with the same results and files. Errors are exceptions.
Importing this package imports neither torch nor ray. docs/python.md is the guide.

Packages:
    exported  exported models: writing, loading, use
    loaded    trained models in this process
    progress  progress of a command as events

Files:
    commands.py     the functions run, prepare, train, evaluate and recommend
    comparisons.py  the function compare
    config.py       settings of a run, from a file or a dictionary
    results.py      results of commands, as values
    runs.py         runs on disk: stages, metrics, checkpoints
"""

from cluster import __version__
from cluster.errors import RunFailedError, StoppedError
from shoal.commands import evaluate, prepare, recommend, run, train
from shoal.comparisons import Comparison, Difference, compare
from shoal.config import Config
from shoal.exported.ranker import ExportedRanker
from shoal.exported.recommender import ExportedRecommender
from shoal.exported.write_and_load import export, load_export
from shoal.loaded.live_recommender import LiveRecommender
from shoal.loaded.load import load
from shoal.loaded.ranker import ImpressionRanker
from shoal.loaded.recommender import NextItemRecommender
from shoal.progress.events import (
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
from shoal.results import Dataset, Evaluation, Metric, Recommendations, RunResult, Training
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
    "ExportedRanker",
    "ExportedRecommender",
    "ImpressionRanker",
    "LiveRecommender",
    "Message",
    "Metric",
    "NextItemRecommender",
    "Planned",
    "Progress",
    "Recommendations",
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
    "export",
    "load",
    "load_export",
    "prepare",
    "recommend",
    "run",
    "train",
]
