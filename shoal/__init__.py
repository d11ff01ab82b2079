"""Python API: load a config, run its stages, and read the results of runs.

    config = shoal.Config.load("mine.toml", {"train.epochs": 3})
    result = shoal.run(config)
    print(result.evaluation.metrics["ndcg@10"])

The functions do what the commands of the same name do, with the same results and files. Errors are exceptions.
Importing this package imports neither torch nor ray. docs/python.md is the guide.

Files:
    commands.py              the functions run, prepare, train, evaluate and recommend
    comparisons.py           the function compare
    config.py                settings of a run, from a file or a dictionary
    events.py                events that report the progress of a command
    exported.py              exports of trained models: writing and loading them
    exported_model.py        an exported model of either task
    exported_ranker.py       an exported ranker
    exported_recommender.py  an exported next-item model
    given.py                 values that a caller gives to a model, as Arrow
    live_recommender.py      recommendations for one user whose history grows
    model.py                 loads a trained model into this process
    ranker.py                a ranker in this process: probabilities, recommendations among candidates
    recommender.py           a next-item model in this process: recommendations, scores, vectors
    results.py               results of commands, as values
    runs.py                  runs on disk: stages, metrics, checkpoints
    trained.py               base of trained models of both tasks
    view.py                  relays what the driver reports to a listener
"""

from cluster import __version__
from cluster.errors import RunFailedError, StoppedError
from shoal.commands import evaluate, prepare, recommend, run, train
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
from shoal.exported import export, load_export
from shoal.exported_ranker import ExportedRanker
from shoal.exported_recommender import ExportedRecommender
from shoal.live_recommender import LiveRecommender
from shoal.model import load
from shoal.ranker import ImpressionRanker
from shoal.recommender import NextItemRecommender
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
