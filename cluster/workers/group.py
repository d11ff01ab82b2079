"""Worker group: launches workers, sends them jobs and receives their events.

A job is a function and an argument. A small actor, the mailbox, carries jobs and the request to stop to the workers, and
events to the driver. Ray Train's own reports are not used: committed checkpoints decide what exists.
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
from cluster.errors import WorkersFailedError
from cluster.ray_cluster.session import temporary_storage
from cluster.workers.mailbox import Mailbox, WorkerFailure
from cluster.workers.worker import POLL_SECONDS, WorkerFunction
from trainer.errors import UserError, first_line

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

END_SECONDS = 60.0  # for idle workers to shut down

OnEvent = Callable[[dict[str, Any]], None]


class Workers:
    """config.num_workers workers in one process group.

    Launched on first use and reused until the context exits. A failed job shuts the group down; the next job launches a new
    one. connect: joins Ray; called before each launch. on_phase: called with a line of text before a launch.
    """

    def __init__(
        self,
        config: ClusterConfig,
        connect: Callable[[], None] = lambda: None,
        on_phase: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._config = config
        self._connect = connect
        self._on_phase = on_phase
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
        """Run function(argument, world, channel) on every worker. Return their results in rank order.

        Args:
            function: what each worker runs.
            argument: its first argument, the same for all workers; pickled.
            on_event: called in this thread with each event that a worker sends.
            stop: when it is set, workers are asked to stop; they do so at their next step.

        Raises UserError if a worker raised one, and WorkersFailedError, naming the rank, for anything else.
        """
        if self._launch is None:
            self._connect()
            self._on_phase(f"workers: starting {self._config.num_workers}, which load torch and TorchRec")
            self._launch = _Launch(self._config)
        launch = self._launch
        try:
            return launch.run(function, argument, on_event, stop or threading.Event())
        except BaseException:
            self._launch = None
            launch.abandon()
            raise


class _Launch:
    """One run of Ray Train, with workers that wait for jobs."""

    def __init__(self, config: ClusterConfig) -> None:
        self._num_workers = config.num_workers
        self._mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        self._storage = temporary_storage()
        self._raised: list[BaseException] = []
        from cluster.workers.ray_train import (
            make_trainer,  # takes seconds, because it imports Ray Train with torch: only a launch needs it
        )

        trainer = make_trainer(config, self._mailbox, self._storage)
        self._fitting = threading.Thread(target=_fit, args=(trainer, self._raised), daemon=True, name="ray-train")
        self._fitting.start()

    def run(
        self,
        function: WorkerFunction,
        argument: Any,
        on_event: OnEvent,
        stop: threading.Event,
    ) -> list[Any]:
        ray.get(self._mailbox.give.remote(cloudpickle.dumps((function, argument))))
        asked, at_work = False, True
        while at_work:
            self._fitting.join(timeout=POLL_SECONDS)
            at_work = self._fitting.is_alive()
            if stop.is_set() and not asked:
                self._mailbox.request_stop.remote()
                asked = True
            events, num_done = ray.get(self._mailbox.drain.remote())
            for event in events:
                on_event(event)
            at_work = at_work and num_done < self._num_workers
        results, failures = ray.get(self._mailbox.outcome.remote())
        if len(results) < self._num_workers:
            _raise_failures(failures, self._raised)
        return [pickle.loads(results[rank]) for rank in range(self._num_workers)]

    def end(self) -> None:
        """Shut down idle workers."""
        if self._fitting.is_alive():
            self._mailbox.give.remote(None)
            self._fitting.join(timeout=END_SECONDS)
        self.abandon()

    def abandon(self) -> None:
        """Kill the mailbox; workers still running fail at their next poll."""
        ray.kill(self._mailbox)
        shutil.rmtree(self._storage, ignore_errors=True)


def _fit(trainer: TorchTrainer, raised: list[BaseException]) -> None:
    # Not in the main thread: there, Ray would install its own handler, which drops the job on Ctrl-C.
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001 - a thread boundary: it is raised again in the main thread
        raised.append(error)


def _raise_failures(failures: list[WorkerFailure], raised: list[BaseException]) -> NoReturn:
    fixable = [failure for failure in failures if failure.user_message is not None]
    if fixable:
        raise UserError(fixable[0].user_message)
    error = raised[0] if raised else None
    trace = "\n".join([*(f.trace for f in failures), *(traceback.format_exception(error) if error else ())])
    # A killed rank sends no failure, and the others only see a broken connection: name the killed rank first.
    reported = {failure.rank for failure in failures}
    silent = {r: e for r, e in sorted(getattr(error, "worker_failures", {}).items()) if r not in reported}
    if silent:
        rank, cause = next(iter(silent.items()))
        raise WorkersFailedError(f"rank {rank} died: {first_line(cause)}{_others(failures)}", trace)
    if failures:
        raise WorkersFailedError(f"rank {failures[0].rank} failed: {failures[0].cause}{_others(failures[1:])}", trace)
    if error is not None:
        raise WorkersFailedError(f"the group of workers failed: {first_line(error)}", trace)
    raise WorkersFailedError("the group of workers ended before its job was done", trace)


def _others(failures: list[WorkerFailure]) -> str:
    return f" ({len(failures)} more failed with it)" if failures else ""
