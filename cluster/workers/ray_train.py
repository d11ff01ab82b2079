"""How Ray Train is asked for workers: its trainer, without the actors that Shoal has no use for."""

import math
import uuid
from datetime import datetime
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from cluster.config.run_config import ClusterConfig
from cluster.workers.worker import serve


class _Trainer(TorchTrainer):
    """Ray's trainer without the actor that shares out datasets of Ray Data, which no worker asks for: Shoal streams its own.

    An actor is a process, which takes seconds to start and as much memory as Ray's own modules.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, DatasetsCallback)]


class _LocalTrainer(_Trainer):
    """Also without the actor that removes the workers' placement group once it believes the controller dead.

    That actor asks Ray's state API, which needs a dashboard. In a session on this machine there is none, so the question goes to
    the dashboard of whatever other cluster was started here last; that one has never heard of our controller, and a healthy
    training is ended (Ray 2.60). A session on this machine is cleaned up when it ends; on a cluster that actor is kept.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


def make_trainer(config: ClusterConfig, monitor: Any, storage: str) -> TorchTrainer:
    """A trainer whose workers serve what `monitor` is given, in one process group; it keeps its own files in `storage`."""
    trainer_class = _LocalTrainer if config.address is None else _Trainer
    return trainer_class(
        serve,
        train_loop_config={"monitor": monitor, "threads": config.cpus_per_worker},
        torch_config=TorchConfig(
            backend="nccl" if config.gpus_per_worker else "gloo",
            # Ray takes whole seconds. A part of one is rounded up, because no time at all would fail at once.
            timeout_s=math.ceil(config.collective_timeout_seconds),
        ),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker},
        ),
        run_config=RunConfig(
            # A fresh name each time: Ray would take a finished name for finished work and train nothing.
            name=f"shoal-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=0),
        ),
    )
