"""Trials over Ray Tune: each in an actor without CPUs, which starts the workers of its own stages through Ray Train.

Ray Train places the workers of a stage all at once or not at all, so trials that wait for CPUs hold none, and whatever runs
ends: no order of starts can deadlock. Only as many trials run as the cluster holds, so that none waits long. A trial that
fails reports it as a result; the others continue.
"""

import contextlib
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from cluster.config.run_config import ClusterConfig
from cluster.driver.progress import View
from cluster.ray_cluster.room import NodeRoom, room_on, sets_on
from cluster.ray_cluster.session import nodes_here, temporary_storage
from cluster.study.record import Record
from cluster.study.trial import Task, run_trial

JOIN_SECONDS = 0.2
# Ray Tune has to be asked for something, and CPUs belong to the workers: one MiB of memory, which every node has.
ACTOR = {"CPU": 0, "memory": 2**20}


def run_tasks(tasks: list[Task], limit: int, view: View) -> dict[str, Record]:
    """Run trials, at most `limit` side by side; by name, how each ended. Ray must be initialised."""
    progress = _Progress(tasks, view)
    storage = temporary_storage()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are printed by name, once
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trainable, tasks=tasks, folder=os.getcwd()), ACTOR),
        param_space={"number": tune.grid_search(list(range(len(tasks))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=limit, reuse_actors=False),
        run_config=tune.RunConfig(storage_path=storage, name="study", verbose=0, callbacks=[progress]),
    )
    raised: list[BaseException] = []
    fitting = threading.Thread(target=_fit, args=(tuner, raised), daemon=True, name="ray-tune")
    try:
        fitting.start()
        while fitting.is_alive():  # not in this thread, where Ray Tune would take Ctrl-C for itself
            fitting.join(timeout=JOIN_SECONDS)
    finally:
        view.clear()
        shutil.rmtree(storage, ignore_errors=True)
    if raised:
        raise raised[0]
    return progress.ended


def most_at_once(clusters: list[ClusterConfig]) -> int:
    """Return how many trials the cluster holds at a time, if each is as large as the largest. Ray must be initialised."""
    nodes = nodes_here()
    return min(_fitting(nodes, cluster) for cluster in clusters)


def _fitting(nodes: list[NodeRoom], cluster: ClusterConfig) -> int:
    most = room_on(nodes, cluster) // cluster.num_workers
    evaluation = cluster.of_evaluation
    if evaluation is not None:  # with workers of their own
        most = sets_on(nodes, (cluster, evaluation), most)
    return max(1, most)


def _fit(tuner: tune.Tuner, raised: list[BaseException]) -> None:
    # Ray Tune prints tables on stdout, which belongs to the command; a console that was given its file keeps it.
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            tuner.fit()
    except BaseException as error:  # noqa: BLE001 - a thread boundary: it is raised again in the main thread
        raised.append(error)


def _trainable(config: dict[str, Any], tasks: list[Task], folder: str) -> None:
    with contextlib.suppress(OSError):  # relative paths mean what they mean to the command, where the folder exists
        os.chdir(folder)
    task = tasks[config["number"]]
    report = _reporter(task)
    record = run_trial(task, report)
    tune.report({"record": asdict(record)})


def _reporter(task: Task) -> Callable[[dict[str, Any]], None]:
    def report(event: dict[str, Any]) -> None:
        tune.report({"validation": {"step": event["step"], **event["metrics"]}})

    return report


class _Progress(tune.Callback):  # type: ignore[misc]
    """Tells what begins and ends, by name. Runs in the thread of Ray Tune."""

    def __init__(self, tasks: list[Task], view: View) -> None:
        self.ended: dict[str, Record] = {}
        self._tasks = tasks
        self._view = view

    def __getstate__(self) -> dict[str, Any]:
        """Save nothing: Ray Tune would restore this object, but a study resumes from its trials' folders instead."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._view.print_line(f"{self._name(trial)}: started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        found = result.get("validation")
        if found is not None:
            metric = self._tasks[trial.config["number"]].metric
            text = f"{self._name(trial)}: step {found['step']:,}, {metric} {_figure(found[metric])}"
            self._view.update("study", len(self.ended), len(self._tasks), text)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = (trial.last_result or {}).get("record")
        self._end(trial, Record(**values) if values else None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, None)

    def _end(self, trial: Any, record: Record | None) -> None:
        task = self._tasks[trial.config["number"]]
        if record is None:
            record = Record("failed", task.digest, reason="its process died, perhaps for want of memory")
        self.ended[task.trial.name] = record
        what = f"done, step {record.steps:,}" if record.status == "done" else f"failed: {record.reason}"
        self._view.print_line(f"{task.trial.name}: {what}   ({len(self.ended)} of {len(self._tasks)})")

    def _name(self, trial: Any) -> str:
        return str(self._tasks[trial.config["number"]].trial.name)


def _figure(value: float) -> str:
    return "is not defined" if math.isnan(value) else f"{value:.4f}"


def in_order(tasks: list[Task]) -> list[Task]:
    """Order tasks seed by seed, so that all points have a first result early and share changes of the machine's load."""
    seeds = list(dict.fromkeys(task.trial.seed for task in tasks))
    return sorted(tasks, key=lambda task: (seeds.index(task.trial.seed), task.trial.point))
