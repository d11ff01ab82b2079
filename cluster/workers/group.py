"""Launching workers, and talking to them while they run.

They are given work, a function and an argument, through one small actor, the monitor, which carries work and the request to
stop to the workers and events to the driver. Ray Train's own reports are not used: our committed checkpoints decide what exists.
"""

from __future__ import annotations

import pickle
import shutil
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import ray
from ray import cloudpickle

from cluster.config.run_config import ClusterConfig
from cluster.ray_cluster.session import temporary_storage
from cluster.workers.mailbox import Monitor, WorkerFailure
from cluster.workers.worker import POLL_SECONDS, WorkerFunction
from trainer.errors import UserError, first_line

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

END_SECONDS = 60.0  # that workers which have nothing more to do get to end

OnEvent = Callable[[dict[str, Any]], None]


class WorkersFailedError(RuntimeError):
    """Workers failed for a reason that is not the user's to mend. The message is one line; `trace` is for the log."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)
        self.message = message
        self.trace = trace

    def __str__(self) -> str:
        return self.message


class Workers:
    """config.num_workers workers in one process group: launched for their first work, kept for the next, ended with the body.

    A work that fails ends them; the next one then launches others.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._launch: _Launch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._launch is not None:
            self._launch.end()

    def run(
        self,
        function: WorkerFunction,
        argument: Any,
        on_event: OnEvent,
        stop: threading.Event | None = None,
    ) -> list[Any]:
        """function(argument, ranks, channel) on every worker; their results in rank order.

        Events that workers send are passed to `on_event` in this thread. When `stop` is set, workers are asked to stop; they answer
        at their next step. Raises UserError if a worker raised one, and WorkersFailedError, naming the rank, for anything else.
        """
        launch = self._launch = self._launch or _Launch(self._config)
        try:
            return launch.run(function, argument, on_event, stop or threading.Event())
        except BaseException:
            self._launch = None
            launch.abandon()
            raise


class _Launch:
    """One run of Ray Train, whose workers wait for work."""

    def __init__(self, config: ClusterConfig) -> None:
        self._num_workers = config.num_workers
        self._monitor = ray.remote(num_cpus=0)(Monitor).remote()
        self._storage = temporary_storage()
        self._raised: list[BaseException] = []
        from cluster.workers.ray_train import (
            make_trainer,  # Ray Train with torch: seconds, which only a launch is worth
        )

        trainer = make_trainer(config, self._monitor, self._storage)
        self._fitting = threading.Thread(target=_fit, args=(trainer, self._raised), daemon=True, name="ray-train")
        self._fitting.start()

    def run(
        self,
        function: WorkerFunction,
        argument: Any,
        on_event: OnEvent,
        stop: threading.Event,
    ) -> list[Any]:
        ray.get(self._monitor.give.remote(cloudpickle.dumps((function, argument))))
        asked, at_work = False, True
        while at_work:
            self._fitting.join(timeout=POLL_SECONDS)
            at_work = self._fitting.is_alive()
            if stop.is_set() and not asked:
                self._monitor.request_stop.remote()
                asked = True
            events, num_done = ray.get(self._monitor.drain.remote())
            for event in events:
                on_event(event)
            at_work = at_work and num_done < self._num_workers
        results, failures = ray.get(self._monitor.outcome.remote())
        if len(results) < self._num_workers:
            _raise_failures(failures, self._raised)
        return [pickle.loads(results[rank]) for rank in range(self._num_workers)]

    def end(self) -> None:
        """Let the workers go, which have done their work."""
        if self._fitting.is_alive():
            self._monitor.give.remote(None)
            self._fitting.join(timeout=END_SECONDS)
        self.abandon()

    def abandon(self) -> None:
        """Workers that are still there find no one to ask, and fail."""
        ray.kill(self._monitor)
        shutil.rmtree(self._storage, ignore_errors=True)


def _fit(trainer: TorchTrainer, raised: list[BaseException]) -> None:
    # Not in the main thread: there, Ray would install a handler of its own that drops work on Ctrl-C.
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001 - a thread boundary: it is raised again in the main thread
        raised.append(error)


def _raise_failures(failures: list[WorkerFailure], raised: list[BaseException]) -> NoReturn:
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
        raise WorkersFailedError(f"rank {rank} died: {first_line(cause)}{_others(failures)}", trace)
    if failures:
        raise WorkersFailedError(f"rank {failures[0].rank} failed: {failures[0].cause}{_others(failures[1:])}", trace)
    if error is not None:
        raise WorkersFailedError(f"the group of workers failed: {first_line(error)}", trace)
    raise WorkersFailedError("the group of workers ended before its work was done", trace)


def _others(failures: list[WorkerFailure]) -> str:
    return f" ({len(failures)} more failed with it)" if failures else ""
