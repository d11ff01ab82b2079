"""Launching workers with Ray Train, and talking to them while they run.

Workers are given a function and a payload; they answer through one small actor, the monitor, which carries events to
the driver and the request to stop to the workers. Ray Train's own reports are not used: our committed checkpoints
decide what exists.
"""

import pickle
import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from cluster.config import ClusterConfig
from cluster.monitor import Monitor, WorkerFailure
from cluster.session import temporary_storage
from sharding.errors import PlacementError
from sharding.ranks import Ranks, current_ranks
from trainer.errors import UserError
from trainer.job import Channel
from trainer.memory import keep_freed_memory

POLL_SECONDS = 0.2
WorkerFunction = Callable[[Any, Ranks, Channel], Any]


class WorkersFailedError(RuntimeError):
    """Workers failed for a reason that is not the user's to mend. The message is one line; `trace` is for the log."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)
        self.message = message
        self.trace = trace

    def __str__(self) -> str:
        return self.message


class _StopPoll:
    """Asks the monitor now and then whether to stop, without ever waiting for the answer."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._pending: Any = None
        self._asked = 0.0
        self._answer = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._pending is not None and now - self._asked > 0.02 and ray.wait([self._pending], timeout=0)[0]:
            self._answer = bool(ray.get(self._pending))
            self._pending = None
        if self._pending is None and now - self._asked > POLL_SECONDS:
            self._pending, self._asked = self._monitor.stop_requested.remote(), now
        return self._answer


def _work(payload: dict[str, Any]) -> None:
    """What runs on every worker, in a thread of Ray Train's actor."""
    monitor, function = payload["monitor"], payload["function"]
    rank = ray.train.get_context().get_world_rank()
    try:
        device = get_device()
        if device.type == "cpu":
            torch.set_num_threads(payload["threads"])
            keep_freed_memory()
        ranks = current_ranks(device)
        channel = Channel(send=lambda event: monitor.push.remote(event), stop_requested=_StopPoll(monitor))
        result = function(payload["argument"], ranks, channel)
        ray.get(monitor.finish.remote(rank, pickle.dumps(result)))
    except Exception as error:
        message = str(error) if isinstance(error, UserError | PlacementError) else None
        cause = f"{type(error).__name__}: {_first_line(error)}"
        ray.get(monitor.fail.remote(WorkerFailure(rank, cause, message, traceback.format_exc())))
        raise


class _Trainer(TorchTrainer):
    """Ray's trainer without the actor that removes the workers' placement group once it believes the controller dead.

    That actor asks Ray's state API, which needs a dashboard. In a session on this machine there is none, so the question goes to
    the dashboard of whatever other cluster was started here last; that one has never heard of our controller, and a healthy
    training is ended (Ray 2.60). A session on this machine is cleaned up when it ends; on a cluster with a dashboard Ray's own
    trainer is used.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


def run_workers(
    function: WorkerFunction,
    argument: Any,
    config: ClusterConfig,
    on_event: Callable[[dict[str, Any]], None],
    stop: threading.Event,
) -> list[Any]:
    """function(argument, ranks, channel) on config.num_workers workers; their results in rank order.

    Events that workers send are passed to `on_event` in this thread. When `stop` is set, workers are asked to stop; they answer
    at their next step. Raises UserError if a worker raised one, and WorkersFailedError, naming the rank, for anything else.
    """
    monitor = ray.remote(num_cpus=0)(Monitor).remote()
    storage = temporary_storage()
    trainer_class = _Trainer if config.address is None else TorchTrainer
    trainer = trainer_class(
        _work,
        train_loop_config={
            "monitor": monitor,
            "function": function,
            "argument": argument,
            "threads": config.cpus_per_worker,
        },
        torch_config=TorchConfig(
            backend="nccl" if config.gpus_per_worker else "gloo", timeout_s=int(config.collective_timeout_seconds)
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
    raised: list[BaseException] = []
    fitting = threading.Thread(target=_fit, args=(trainer, raised), daemon=True, name="ray-train")
    fitting.start()
    try:
        asked = False
        while fitting.is_alive():
            fitting.join(timeout=POLL_SECONDS)
            if stop.is_set() and not asked:
                monitor.request_stop.remote()
                asked = True
            for event in ray.get(monitor.drain.remote()):
                on_event(event)
        for event in ray.get(monitor.drain.remote()):
            on_event(event)
        results, failures = ray.get(monitor.outcome.remote())
    finally:
        ray.kill(monitor)
        shutil.rmtree(storage, ignore_errors=True)
    _raise_failures(failures, raised)
    return [pickle.loads(results[rank]) for rank in range(config.num_workers)]


def _fit(trainer: TorchTrainer, raised: list[BaseException]) -> None:
    # Not in the main thread: there, Ray would install a handler of its own that drops work on Ctrl-C.
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001 - a thread boundary: it is raised again in the main thread
        raised.append(error)


def _raise_failures(failures: list[WorkerFailure], raised: list[BaseException]) -> None:
    mendable = [failure for failure in failures if failure.user_message is not None]
    if mendable:
        raise UserError(mendable[0].user_message)
    error = raised[0] if raised else None
    trace = "\n".join([*(f.trace for f in failures), *(traceback.format_exception(error) if error else ())])
    # A rank that was killed could not speak for itself, and the others only saw a broken connection: name it first.
    spoke = {failure.rank for failure in failures}
    silent = {r: e for r, e in sorted(getattr(error, "worker_failures", {}).items()) if r not in spoke}
    if silent:
        rank, cause = next(iter(silent.items()))
        raise WorkersFailedError(f"rank {rank} died: {_first_line(cause)}{_others(failures)}", trace)
    if failures:
        raise WorkersFailedError(f"rank {failures[0].rank} failed: {failures[0].cause}{_others(failures[1:])}", trace)
    if error is not None:
        raise WorkersFailedError(f"the group of workers failed: {_first_line(error)}", trace)


def _others(failures: list[WorkerFailure]) -> str:
    return f" ({len(failures)} more failed with it)" if failures else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
