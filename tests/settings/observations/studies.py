"""What the settings' tests see of a study: its trials, what they are run with, and what its outcome is judged by."""

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console

from cluster.config.run_config import Config
from cluster.driver import driver
from cluster.driver.progress import View
from cluster.ray_cluster import session
from cluster.study import command, execute, outputs
from cluster.study.collect import Finished, Measured
from cluster.study.config import StudyFile
from cluster.study.costing import Costing, costs_of_points
from cluster.study.record import Record
from cluster.study.summary import Summary, summarize
from cluster.study.trial import Task, run_trial
from cluster.study.trials import Plan, plan_trials
from tests.settings.lab import Lab
from trainer.config.job import Outcome
from trainer.errors import UserError


def trials(lab: Lab, file: StudyFile) -> list[str] | str:
    """Return the names of all trials, or the setting by which the study is refused."""
    try:
        return [trial.name for trial in plan_trials(file).trials]
    except UserError as error:
        return str(error).partition("and ")[2].partition(" =")[0]


def drawn(lab: Lab, file: StudyFile) -> list[Any]:
    """Return the value of model.max_history in each point."""
    return [point.settings["model.max_history"] for point in plan_trials(file).points]


def in_range(lab: Lab, file: StudyFile) -> list[bool]:
    """Return, for each point, True if its train.learning_rate is between 0.2 and 0.3."""
    points = plan_trials(file).points
    return [0.2 <= point.settings["train.learning_rate"] <= 0.3 for point in points]


def integers_in_range(lab: Lab, file: StudyFile) -> bool:
    """Return True if all values of model.max_history are whole numbers between 1001 and 1999."""
    return set(drawn(lab, file)) <= set(range(1001, 2000))


def run_folders(lab: Lab, file: StudyFile) -> set[str]:
    """Return the folder that trials are in."""
    return {str(trial.config.run_dir.parent) for trial in plan_trials(file).trials}


def seeds(lab: Lab, file: StudyFile) -> set[int]:
    """Return the seeds of the trials."""
    return {trial.config.run.seed for trial in plan_trials(file).trials}


def _summary(file: StudyFile) -> tuple[Plan, Summary]:
    """Return a study with a second point of larger mrr and smaller ndcg@10."""
    plan, finished = plan_trials(file), {}
    for trial in plan.trials:
        metrics = {"ndcg@10": 0.5 - 0.1 * trial.point, "mrr": 0.5 + 0.1 * trial.point}
        measured = Measured(metrics, ["a"], np.asarray([metrics[plan.study.metric]]))
        record = Record("done", "d", 1, 8.0, 8.0, 1000, 40)
        finished[trial.name] = Finished(trial, record, {"validation": measured})
    return plan, summarize(plan, finished, {}, costs_of_points(plan))


def best_point(lab: Lab, file: StudyFile) -> int:
    """Return the number of the point that is ranked first."""
    ranks = [row.rank for row in _summary(file)[1].rows]
    return ranks.index(1)


class _DrawnError(Exception):
    """The picture is drawn by this key."""


def coloured_by(lab: Lab, file: StudyFile) -> str | None:
    """Return the setting that colours the plots."""
    plan, summary = _summary(file)
    plan.file.folder.mkdir(parents=True, exist_ok=True)

    def draw(summary: Summary, key: str | None) -> None:
        raise _DrawnError(key)

    with mock.patch.object(outputs, "draw", draw):
        try:
            outputs.write(plan, summary)
        except _DrawnError as error:
            key: str | None = error.args[0]
            return key
    raise AssertionError("nothing was drawn")


@dataclass(frozen=True)
class Executed:
    """How trials are run: at most `limit` side by side."""

    limit: int
    tasks: list[Task]


def executed(lab: Lab, file: StudyFile) -> Executed:
    """Return what a study runs on a cluster that holds five trials."""
    plan, given = plan_trials(file), list[Executed]()

    def run_tasks(tasks: list[Task], limit: int, view: View) -> dict[str, Record]:
        given.append(Executed(limit, tasks))
        return {}

    manifests = {folder: lab.manifest(config) for folder, config in plan.datasets().items()}
    with (
        mock.patch.object(session, "ray_session", return_value=nullcontext()),
        mock.patch.object(session, "check_resources", return_value=None),
        mock.patch.object(execute, "most_at_once", return_value=5),
        mock.patch.object(execute, "run_tasks", run_tasks),
        mock.patch.object(command, "_prepared", return_value=manifests),
        mock.patch.object(outputs, "write", return_value=None),
    ):
        command._run(plan, View(Console(quiet=True)))
    return given[0]


def trials_at_once(lab: Lab, file: StudyFile) -> int:
    """Return how many trials run side by side."""
    return executed(lab, file).limit


def splits_evaluated(lab: Lab, file: StudyFile) -> set[tuple[str, ...]]:
    """Return the splits that trials are evaluated on."""
    return {task.splits for task in executed(lab, file).tasks}


def checkpoints_left(lab: Lab, file: StudyFile) -> bool:
    """Return whether the first trial still has its checkpoints once it is done."""
    task = executed(lab, file).tasks[0]

    def run_prepared(config: Config, splits: list[str], view: View) -> tuple[Outcome, dict[str, Any]]:
        (config.run_dir / "checkpoints").mkdir()
        for split in splits:
            for name in ("metrics.json", "per_user.parquet"):
                file = config.run_dir / "evaluation" / split / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(name)
        return Outcome("finished", 3, None, None), {}

    with mock.patch.object(driver, "run_prepared", run_prepared):
        record = run_trial(task, lambda _: None)
    assert record.status == "done", record.reason
    left = (task.trial.config.run_dir / "checkpoints").exists()
    shutil.rmtree(task.trial.config.run_dir)  # other observations run the trial, too
    return left


def _cost(file: StudyFile) -> Costing:
    return costs_of_points(plan_trials(file))[0]


def table_parameters(lab: Lab, file: StudyFile) -> int:
    """Return the number of parameters of tables in a dry run."""
    return _cost(file).table_parameters


def events_per_history(lab: Lab, file: StudyFile) -> float:
    """Return the length of histories in a dry run."""
    return _cost(file).events_per_history


def training_flops(lab: Lab, file: StudyFile) -> float:
    """Return the training FLOPs of an impression in a dry run."""
    cost = _cost(file)
    assert cost.unit == "impression"
    return cost.training_flops
