"""Worker: runs the driver's jobs, one after another.

Starting a worker takes much longer than sending it a job, because its process imports torch, TorchRec and fbgemm. A worker is
therefore kept for the next job, and ends when there are no more. The driver imports this module, so those imports are local.
"""

from __future__ import annotations

import gc
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray import cloudpickle

from cluster.errors import MoveError
from cluster.workers.heart import Heart
from cluster.workers.mailbox import Move, Place
from cluster.workers.metrics import rank_gauges
from cluster.workers.quick_imports import quick_imports
from cluster.workers.rank_log import RankLog, rank_log
from sharding.errors import PlacementError, picklable
from trainer.config.job import Channel, Outcome
from trainer.errors import UserError, first_line
from trainer.storage.files import disk_refusal

if TYPE_CHECKING:
    from sharding.world import World

POLL_SECONDS = 0.2

# (argument, world, channel) -> the rank's result.
WorkerFunction = Callable[[Any, "World", Channel], Any]


def serve(payload: dict[str, Any]) -> None:
    """Run one job after another until there are no more. Runs in a thread of Ray Train's actor."""
    import ray.train

    mailbox = payload["mailbox"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    place = _place()
    world_size = context.get_world_size()
    attempt = ray.get(mailbox.enter.remote(rank, world_size, place))
    with rank_log(payload.get("logs"), rank, place) as log:
        log.write(f"attempt {attempt} with {world_size} workers")
        _serve(payload, attempt, rank, place, log)


def _serve(payload: dict[str, Any], attempt: int, rank: int, place: Place, log: RankLog) -> None:
    """Run the jobs of the mailbox as this rank."""
    mailbox = payload["mailbox"]
    heart = Heart(mailbox, attempt, rank, place)
    heart.start()
    try:
        with quick_imports():
            import torch
            from ray.train.torch import get_device

            from sharding.world import current_world
            from trainer.loop.memory import keep_freed_memory, memory_trimmer

        device = get_device()
        if device.type == "cpu":
            torch.set_num_threads(payload["threads"])
            keep_freed_memory()
        world = current_world(device)
        release = memory_trimmer()
        heart.lap("imports")
        measure = _measure_of(payload, rank)
        done = 0
        while True:
            number, job = ray.get(mailbox.job.remote())
            if number == done:
                time.sleep(POLL_SECONDS / 4)
                continue
            if job is None:
                return
            heart.begin()
            log.write(f"job {number} begins")
            channel = _channel_of(mailbox, heart, measure)
            result = _result_of(job, world, channel, lambda: ray.get(mailbox.move.remote()))
            ray.get(mailbox.finish.remote(attempt, rank, result))
            done = number
            log.write(f"job {number} is done")
            gc.collect()  # a model refers to itself: without this it would still be in memory during the next job
            release()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    except MoveError as move:
        log.write(f"ends with a checkpoint: {move}")
        raise
    except Exception as error:  # noqa: BLE001 - a process boundary: the driver must receive every error
        message = str(error) if isinstance(error, UserError | PlacementError) else None
        if isinstance(error, OSError):
            message = disk_refusal(error)
        cause = f"{type(error).__name__}: {first_line(error)}"
        log.write(f"failed\n{traceback.format_exc()}")
        ray.get(mailbox.fail.remote(attempt, heart.failure(cause, message, traceback.format_exc())))
        # Ray Train pickles the error that is raised here. The driver already has the details from the mailbox.
        raise picklable(error) from None
    finally:
        heart.stop()


def _channel_of(mailbox: Any, heart: Heart, measure: Callable[[dict[str, float]], None] | None) -> Channel:
    """Return the channel of one job to the driver."""
    poll = _Poll(mailbox)
    return Channel(
        send=lambda event: mailbox.push.remote(event),
        stop_requested=lambda: poll()[0],
        saves_requested=lambda: poll()[1],
        validations_made=lambda: poll()[2],
        note=heart.note,
        lap=heart.lap,
        measure=measure,
    )


def _measure_of(payload: dict[str, Any], rank: int) -> Callable[[dict[str, float]], None] | None:
    """Return what exports measurements of this rank; None in a session without a cluster, which nobody monitors."""
    if not payload.get("monitored"):
        return None
    import ray.train

    process = psutil.Process()
    gauges = rank_gauges(ray.train.get_context().get_experiment_name(), payload["run"], rank)
    return lambda values: gauges.set({**values, "memory_bytes": float(process.memory_info().rss)})


def _place() -> Place:
    """Return the process of this rank."""
    process = psutil.Process()
    node = ray.get_runtime_context().get_node_id()
    return Place(socket.gethostname(), node, process.pid, process.create_time())


def _result_of(pickled_job: bytes, world: World, channel: Channel, move: Callable[[], Move | None]) -> bytes:
    """Run a job and return its pickled result. Raises MoveError if it stopped early because the workers are to move."""
    function, argument = cloudpickle.loads(pickled_job)
    result = function(argument, world, channel)
    wanted = move() if isinstance(result, Outcome) and result.reason == "stopped" else None
    if wanted is not None:
        raise MoveError(wanted.text)
    return pickle.dumps(result)


class _Poll:
    """Asks the mailbox from time to time for requests of the driver, without waiting for the answer."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._pending: Any = None
        self._asked = 0.0
        self._answer = (False, 0, 0)

    def __call__(self) -> tuple[bool, int, int]:
        now = time.monotonic()
        if self._pending is not None and now - self._asked > 0.02 and ray.wait([self._pending], timeout=0)[0]:
            self._answer = ray.get(self._pending)
            self._pending = None
        if self._pending is None and now - self._asked > POLL_SECONDS:
            self._pending, self._asked = self._mailbox.requests.remote(), now
        return self._answer
