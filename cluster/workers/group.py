"""Worker group: launches workers, sends them jobs and receives their events.

A job is a function and an argument. A small actor, the mailbox, carries jobs and the request to stop to the workers, and
events to the driver. Ray Train's own reports are not used: committed checkpoints decide what exists.
"""

from __future__ import annotations

import pickle
import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.run_config import ClusterConfig
from cluster.errors import JobCancelledError, WorkersFailedError
from cluster.ray_cluster.session import temporary_storage
from cluster.workers.budget import Budget
from cluster.workers.failures import cause_of
from cluster.workers.kill import kill_process
from cluster.workers.mailbox import Beat, Interruption, Mailbox, Place, Status, WorkerFailure
from cluster.workers.moves import Moves
from cluster.workers.quick_imports import quick_imports
from cluster.workers.watchdog import Watchdog
from cluster.workers.worker import POLL_SECONDS, WorkerFunction
from trainer.errors import UserError, first_line

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

RESERVED_SECONDS = 5.0  # for the answer of the mailbox at the end of a launch
END_SECONDS = 60.0  # for idle workers to shut down

OnEvent = Callable[[dict[str, Any]], None]


class Flag(Protocol):
    """A request that may be made at any moment, such as an event of `threading`."""

    def is_set(self) -> bool:
        """Return whether it was made."""


class Workers:
    """config.num_workers workers in one process group.

    Launched on first use and reused until the context exits. A failed job shuts the group down; the next job launches a new
    one. connect: joins Ray; called before each launch. on_phase: called with a line of text before a launch.
    logs: folder for the logs of the ranks.
    """

    def __init__(
        self,
        config: ClusterConfig,
        connect: Callable[[], None] = lambda: None,
        on_phase: Callable[[str], None] = lambda text: None,
        logs: str | None = None,
    ) -> None:
        self._config = config
        self._logs = logs
        self._connect = connect
        self._on_phase = on_phase
        self._launch: _Launch | None = None
        self._lost = Budget(config.recovery)
        self._interruption: Interruption | None = None

    @property
    def run_name(self) -> str:
        """Ray Train's name of the newest launch, which is a label of its metrics."""
        return "" if self._launch is None else self._launch.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._launch is not None:
            self._launch.end()

    def connect(self) -> None:
        """Join Ray, unless that is done."""
        self._connect()

    def others(self, config: ClusterConfig, on_phase: Callable[[str], None], logs: str | None) -> Workers:
        """Return another group in the same session of Ray. Arguments as of the class."""
        return Workers(config, self._connect, on_phase, logs)

    def note_validation(self) -> None:
        """Note for a training that another group has validated a checkpoint of it. Any thread may call this."""
        launch = self._launch
        if launch is not None:
            launch.note_validation()

    def run(
        self,
        function: WorkerFunction,
        argument: Any,
        on_event: OnEvent,
        stop: Flag | None = None,
        cancel: Flag | None = None,
    ) -> list[Any]:
        """Run function(argument, world, channel) on every worker. Return their results in rank order.

        Args:
            function: what each worker runs.
            argument: its first argument, the same for all workers; pickled.
            on_event: called in this thread with each event that a worker sends.
            stop: when it is set, workers are asked to stop; they do so at their next step.
            cancel: when it is set, workers are ended at once, and JobCancelledError is raised.

        Raises UserError if a worker raised one, and WorkersFailedError, naming the rank, for anything else.
        """
        while True:
            launch = self._launch or self._new_launch()
            try:
                return launch.run(function, argument, on_event, stop or threading.Event(), cancel or threading.Event())
            except LaunchLostError as lost:
                self._launch = None
                self._interruption = launch.interruption()
                launch.abandon()
                reason = self._lost.count("failure", lost.step)
                if reason is not None:
                    raise WorkersFailedError(f"{lost}; no restart: {reason}", lost.trace) from None
                on_event(
                    {
                        "kind": "restart",
                        "text": f"{lost}; starting workers again",
                        "cause": "failure",
                        "trace": lost.trace,
                        "reason": str(lost),
                    }
                )
                time.sleep(self._lost.wait("failure"))
            except BaseException:
                self._launch = None
                launch.abandon()
                raise

    def _new_launch(self) -> _Launch:
        self._connect()
        self._on_phase(f"workers: starting {self._config.num_workers}, which load torch and TorchRec")
        self._launch = _Launch(self._config, self._logs, self._interruption)
        self._interruption = None
        return self._launch


class LaunchLostError(Exception):
    """Ray's controller of the workers, or the mailbox, is gone. The workers end with it, and another launch can resume."""

    def __init__(self, message: str, trace: str, step: int) -> None:
        super().__init__(message)
        self.trace = trace
        self.step = step  # newest one that was heard of


class _Launch:
    """One run of Ray Train, with workers that wait for jobs."""

    def __init__(self, config: ClusterConfig, logs: str | None = None, after: Interruption | None = None) -> None:
        # On the driver's node, as Ray's controller: with another node it would be lost, and all workers with it. A soft affinity
        # is not enough: Ray 2.60 places some of these actors elsewhere.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote(after)
        self._storage = temporary_storage()
        self.name = f"shoal-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"  # Ray Train's name of this launch
        self._raised: list[BaseException] = []
        self._watchdog = Watchdog(config.recovery)
        self._newest = Interruption(time.time(), time.time(), 0, 0)
        self._moves = Moves(config)
        with quick_imports():
            # Takes seconds, because it imports Ray Train with torch: only a launch needs it.
            from cluster.workers.ray_train import make_trainer

        trainer = make_trainer(config, self._mailbox, self._storage, logs, self.name)
        self._fitting = threading.Thread(target=_fit, args=(trainer, self._raised), daemon=True, name="ray-train")
        self._fitting.start()

    def run(
        self,
        function: WorkerFunction,
        argument: Any,
        on_event: OnEvent,
        stop: Flag,
        cancel: Flag,
    ) -> list[Any]:
        try:
            return self._run(function, argument, on_event, stop, cancel)
        except ray.exceptions.RayActorError as error:
            raise LaunchLostError(
                f"the mailbox of the workers died: {first_line(error)}", "", self._newest.step
            ) from None

    def _run(self, function: WorkerFunction, argument: Any, on_event: OnEvent, stop: Flag, cancel: Flag) -> list[Any]:
        ray.get(self._mailbox.give.remote(cloudpickle.dumps((function, argument))))
        asked, at_work = False, True
        while at_work:
            self._fitting.join(timeout=POLL_SECONDS)
            at_work = self._fitting.is_alive()
            if cancel.is_set():
                raise JobCancelledError
            if stop.is_set() and not asked:
                self._mailbox.request_stop.remote()
                asked = True
            status = ray.get(self._mailbox.drain.remote())
            for event in status.events:
                beat = status.beats.get(event["rank"]) if event["kind"] == "straggler" else None
                on_event(event if beat is None else {**event, "host": beat.place.host})
            self._follow_nodes(status, on_event)
            self._newest = _later(self._newest, status.beats)
            for rank, reason in self._watchdog.look(status.beats, time.monotonic()).items():
                self._end_rank(rank, status.beats[rank].place, reason)
            if status.world_size is not None and status.num_done == status.world_size:
                at_work = False
        results, failures = ray.get(self._mailbox.outcome.remote())
        if status.world_size is None or len(results) < status.world_size:
            self._raise_failures(failures)
        return [pickle.loads(results[rank]) for rank in range(status.world_size)]

    def _follow_nodes(self, status: Status, on_event: OnEvent) -> None:
        """Ask for a checkpoint or a move where nodes are taken back or added."""
        try:
            advice = self._moves.look(status, lambda: ray.get(self._mailbox.reserved.remote()), time.monotonic())
        except ray.exceptions.RayActorError:
            raise  # the mailbox died
        except Exception:  # noqa: BLE001 - Ray's head may be busy or starting again; the workers need it only to restart
            return
        for text in advice.warnings:
            on_event({"kind": "warning", "text": text})
        if advice.move is not None:
            self._mailbox.request_move.remote(advice.move)
        elif advice.save:
            self._mailbox.request_save.remote()

    def _end_rank(self, rank: int, place: Place, reason: str) -> None:
        """Kill the process of a rank that makes no progress, so that Ray restarts the group. The restart states the reason."""
        ray.get(self._mailbox.accuse.remote(rank, reason))
        if place.node == ray.get_runtime_context().get_node_id():
            kill_process(place)  # a task would need a process of its own, which takes seconds to start
            return
        here = NodeAffinitySchedulingStrategy(place.node, soft=False)
        ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(kill_process).remote(place)

    def _raise_failures(self, failures: list[WorkerFailure]) -> NoReturn:
        error = self._raised[0] if self._raised else None
        cause = cause_of(failures, getattr(error, "worker_failures", {}))
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        no_room = _no_room(error)
        if no_room is not None:
            raise WorkersFailedError(no_room, trace)
        if cause is None and error is not None and not hasattr(error, "worker_failures"):
            raise LaunchLostError(f"Ray Train's controller died: {first_line(error)}", trace, self._newest.step)
        if cause is None:
            raise WorkersFailedError("the group of workers ended before its job was done", trace)
        if cause.user_message is not None:
            raise UserError(cause.user_message)
        raise WorkersFailedError(cause.text, "\n".join((cause.trace, trace)))

    def note_validation(self) -> None:
        self._mailbox.note_validation.remote()

    def interruption(self) -> Interruption:
        """Return how far training was, if this launch is lost now. The mailbox, which knows more, may be gone."""
        return replace(self._newest, decided=time.time())

    def end(self) -> None:
        """Shut down idle workers."""
        if self._fitting.is_alive():
            self._mailbox.give.remote(None)
            self._fitting.join(timeout=END_SECONDS)
        self.abandon()

    def abandon(self) -> None:
        """Give back the resources of the workers, which ends those that still run, and kill the mailbox."""
        with suppress(RayError):  # the mailbox may be gone, and then the controller has given them back
            group = ray.get(self._mailbox.reserved.remote(), timeout=RESERVED_SECONDS)
            if group is not None:
                remove_placement_group(group)
        ray.kill(self._mailbox)
        shutil.rmtree(self._storage, ignore_errors=True)


def _later(newest: Interruption, beats: Mapping[int, Beat]) -> Interruption:
    """Return how far training is by the newest signs of life, and when the last of them arrived."""
    if not beats:
        return newest
    arrived = time.time() - min(beat.age for beat in beats.values())
    step = max(newest.step, *(beat.step for beat in beats.values()))
    examples = max(newest.examples, *(beat.examples for beat in beats.values()))
    return Interruption(arrived, arrived, step, examples)


def _no_room(error: BaseException | None) -> str | None:
    """Return the message if no nodes for the workers came. The type is in a module that imports Ray Train."""
    inner = getattr(error, "controller_failure", None)
    return str(inner) if type(inner).__name__ == "NoRoomError" else None


def _fit(trainer: TorchTrainer, raised: list[BaseException]) -> None:
    # Not in the main thread: there, Ray would install its own handler, which drops the job on Ctrl-C.
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001 - a thread boundary: it is raised again in the main thread
        raised.append(error)
