"""Ray Train's trainer, without the actors that Shoal does not use."""

import math
import os
import uuid
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ScalingPolicy

from cluster.config.run_config import ClusterConfig
from cluster.workers.restarts import RestartPolicy
from cluster.workers.scaling import GroupSizePolicy
from cluster.workers.worker import serve
from trainer.storage.objects.paths import path_of


class _NotePlacementGroup(WorkerGroupCallback):
    """Tells the mailbox which resources the workers hold. A controller that is killed would leave them reserved (Ray 2.60)."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Note the placement group of workers that have started, before they run anything."""
        handle = worker_group.get_worker_group_state().placement_group_handle
        self._mailbox.reserve.remote(handle.placement_group)


class _Trainer(TorchTrainer):
    """Ray's trainer without the actor that distributes datasets of Ray Data: Shoal streams its own. Restarts have budgets.

    An actor is a process, which takes seconds to start and as much memory as Ray's modules.
    """

    failure_policy: FailurePolicy
    scaling_policy: ScalingPolicy
    mailbox: Any

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        policies = {"failure_policy": self.failure_policy, "scaling_policy": self.scaling_policy}
        return super()._initialize_and_run_controller(**{**controller, **policies})

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = [c for c in super()._create_default_callbacks() if not isinstance(c, DatasetsCallback)]
        return [*callbacks, _NotePlacementGroup(self.mailbox)]


class _LocalTrainer(_Trainer):
    """Trainer for a session on this machine: also without the actor that cleans up the workers' placement group.

    That actor asks Ray's state API whether the controller is alive, and the API needs a dashboard. A session on this machine has
    none, so the question goes to the dashboard of the cluster that was last started here. That cluster does not know our
    controller, and a healthy training is ended (Ray 2.60). On a cluster the actor is kept.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


def make_trainer(
    config: ClusterConfig, mailbox: Any, storage: str, logs: str | None = None, name: str | None = None
) -> TorchTrainer:
    """Return a trainer with workers that run the jobs of `mailbox` in one process group.

    Args:
        config: the cluster.
        mailbox: carries jobs and messages.
        storage: folder for the trainer's own files.
        logs: folder for the logs of the ranks, in the run folder; None leaves them on their nodes.
        name: a fresh name, by default a random one. With the name of a finished run Ray would train nothing.
    """
    trainer_class = _LocalTrainer if config.address is None else _Trainer
    # Ray's default of two seconds is a fifth of the time in which a group of workers starts again.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    if config.min_workers is not None:
        # Of workers for which there was room. If another job was faster, the group may become smaller.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    # Nobody takes back the machine of a session of our own. The watcher is a process that starts with each group.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if config.address is None else "1"
    failure_config = FailureConfig(max_failures=-1, controller_failure_limit=-1)  # the policy below decides
    fewest = config.min_workers
    scaling_config = ScalingConfig(
        num_workers=config.num_workers if fewest is None else (fewest, config.num_workers),
        use_gpu=config.gpus_per_worker > 0,
        resources_per_worker=config.per_worker,
        placement_strategy=config.placed.strategy.upper(),
        label_selector=dict(config.placed.labels) or None,
    )
    trainer = trainer_class(
        serve,
        train_loop_config={
            "mailbox": mailbox,
            "threads": config.cpus_per_worker,
            "logs": logs,
            "run": path_of(logs).parent.name if logs is not None else "",
            "monitored": config.address is not None,
        },
        torch_config=TorchConfig(
            backend="nccl" if config.gpus_per_worker else "gloo",
            # Ray takes whole seconds. Fractions are rounded up, because a timeout of zero would fail at once.
            timeout_s=math.ceil(config.collective_timeout_seconds),
        ),
        scaling_config=scaling_config,
        run_config=RunConfig(
            name=name or f"shoal-{uuid.uuid4().hex}",
            storage_path=storage,
            failure_config=failure_config,
        ),
    )
    trainer.mailbox = mailbox
    trainer.failure_policy = RestartPolicy(failure_config, mailbox, config.recovery)
    trainer.scaling_policy = GroupSizePolicy(scaling_config, config, mailbox)
    return trainer
