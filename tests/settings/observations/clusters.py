"""What the settings' tests see of how Ray is asked for workers, and of plans, without starting any."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import ray

from cluster.config.run_config import ClusterConfig, Config, job_of
from cluster.data import prepare as preparing
from cluster.ray_cluster import session
from cluster.ray_cluster.room import NodeRoom
from cluster.ray_cluster.session import ray_session
from cluster.ray_cluster.task_pool import TaskLimit
from cluster.workers import ray_train as ray_trainer
from sharding.errors import PlacementError
from tests.settings.lab import Lab
from tests.settings.observations.tables import planned
from tests.settings.observations.training import trained
from trainer.errors import UserError

Observe = Callable[[Lab, Config], Any]


def trainer_arguments(lab: Lab, cluster: ClusterConfig) -> dict[str, Any]:
    """Return what Ray Train is asked for: workers, resources of each, backend and patience of the process group, threads."""
    given: dict[str, Any] = {}

    def trainer(serve: Any, **arguments: Any) -> Any:
        given.update(arguments)
        return SimpleNamespace()

    with mock.patch.object(ray_trainer, "_LocalTrainer", trainer), mock.patch.object(ray_trainer, "_Trainer", trainer):
        ray_trainer.make_trainer(cluster, None, str(lab.folder))
    scaling, group = given["scaling_config"], given["torch_config"]
    return {
        "workers": scaling.num_workers,
        "resources": scaling.resources_per_worker,
        "use_gpu": scaling.use_gpu,
        "strategy": scaling.placement_strategy,
        "labels": scaling.label_selector,
        "backend": group.backend,
        "timeout": group.timeout_s,
        "threads": given["train_loop_config"]["threads"],
    }


def asked_of_ray(name: str) -> Observe:
    """Return the observation of one of these arguments."""

    def observe(lab: Lab, config: Config) -> Any:
        return trainer_arguments(lab, config.cluster)[name]

    observe.__name__ = f"Ray Train's {name}"
    return observe


def asked_for_evaluation(name: str) -> Observe:
    """Return the observation of one of these arguments for the workers of concurrent evaluation; None without any."""

    def observe(lab: Lab, config: Config) -> Any:
        evaluation = config.cluster.of_evaluation
        return None if evaluation is None else trainer_arguments(lab, evaluation)[name]

    observe.__name__ = f"Ray Train's {name} for evaluation"
    return observe


def joined_address(lab: Lab, config: Config) -> str:
    """Return the address that a session joins."""
    joined: list[str] = []

    def init(address: str, **_: Any) -> None:
        joined.append(address)

    with (
        mock.patch.object(ray, "init", init),
        mock.patch.object(ray, "shutdown", return_value=None),
        mock.patch.object(ray, "is_initialized", return_value=False),
        mock.patch.object(session, "check_cluster", return_value=None),
        mock.patch.object(session, "check_resources", return_value=None),
        ray_session(config.cluster),
    ):
        return joined[0]


def workers_refused(lab: Lab, config: Config) -> bool:
    """Return whether a cluster of two CPUs refuses the workers."""
    with mock.patch.object(session, "nodes_here", return_value=[NodeRoom("a", {"CPU": 2.0})]):
        try:
            session.check_resources(config.cluster)
        except UserError:
            return True
    return False


def prepare_limit(lab: Lab, config: Config) -> int:
    """Return how many tasks of prepare may run side by side."""
    limits: list[TaskLimit] = []
    lab.prepare(config, lab.new_folder() / "dataset", limits)
    return limits[0].most


def prepare_nodes(lab: Lab, config: Config) -> tuple[int, dict[str, str]]:
    """Return how many tasks of prepare may run side by side, and the labels of their nodes."""
    nodes = [NodeRoom("a", {"CPU": 2.0}), NodeRoom("b", {"CPU": 3.0}, {"group": "prepare"})]
    with mock.patch.object(preparing, "nodes_here", return_value=nodes):
        limit = preparing.max_tasks(config)
    return limit.most, dict(limit.labels)


def run_dir(lab: Lab, config: Config) -> Path:
    """Return the run folder that workers are given."""
    return job_of(config).run_dir


def dataset_dir(lab: Lab, config: Config) -> Path:
    """Return the dataset folder that workers are given."""
    return job_of(config).dataset_dir


def refused_plan(lab: Lab, config: Config) -> str:
    """Return the message with which the plan of a run is refused, if it is."""
    try:
        planned(lab, config)
    except PlacementError as error:
        return str(error).partition(":")[0]
    return ""


def calibrated_latency(lab: Lab, config: Config) -> float:
    """Return a constant of the cost model that predictions are made with."""
    return float(planned(lab, config).topology.costs.latency)


def measured(lab: Lab, config: Config) -> bool:
    """Return whether the look-ups of tables were timed."""
    placement = lab.see(trained, config).job.run_dir / "placement.json"
    return "measured" in json.loads(placement.read_text(encoding="utf-8"))
