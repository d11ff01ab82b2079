"""What every worker runs: the works that the driver gives, one after another.

Starting a worker takes far longer than giving it something to do, because its process has to import torch, TorchRec and
fbgemm. So it is kept for the next work, and ends when it is told that there is no more. The driver, which names this, does
without them.
"""

from __future__ import annotations

import gc
import pickle
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle

from cluster.workers.mailbox import WorkerFailure
from sharding.errors import PlacementError, picklable
from trainer.errors import UserError, first_line
from trainer.job import Channel
from trainer.storage.files import disk_refusal

if TYPE_CHECKING:
    from sharding.world import World

POLL_SECONDS = 0.2

# (argument, ranks, channel) -> the rank's result.
WorkerFunction = Callable[[Any, "World", Channel], Any]


def serve(payload: dict[str, Any]) -> None:
    """Do one work after another until there is no more; in a thread of Ray Train's actor."""
    import ray.train

    monitor = payload["monitor"]
    rank = ray.train.get_context().get_world_rank()
    try:
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
        done = 0
        while True:
            number, work = ray.get(monitor.work.remote())
            if number == done:
                time.sleep(POLL_SECONDS / 4)
                continue
            if work is None:
                return
            channel = Channel(send=lambda event: monitor.push.remote(event), stop_requested=_StopPoll(monitor))
            ray.get(monitor.finish.remote(rank, _result_of(work, world, channel)))
            done = number
            gc.collect()  # a model refers to itself: without this the next work would find the last one's in its way
            release()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    except Exception as error:  # noqa: BLE001 - a process boundary: whatever it is, the driver must hear of it
        message = str(error) if isinstance(error, UserError | PlacementError) else None
        if isinstance(error, OSError):
            message = disk_refusal(error)
        cause = f"{type(error).__name__}: {first_line(error)}"
        ray.get(monitor.fail.remote(WorkerFailure(rank, cause, message, traceback.format_exc())))
        # Ray Train pickles what is raised here. The driver has the details from the monitor already.
        raise picklable(error) from None


def _result_of(pickled_work: bytes, world: World, channel: Channel) -> bytes:
    function, argument = cloudpickle.loads(pickled_work)
    return pickle.dumps(function(argument, world, channel))


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
