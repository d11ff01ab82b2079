"""Rank processes for tests: started once, used by many tests, with a deadline on everything.

Each call runs a module-level function on the first `world_size` processes, with the `World` of their gloo process group as first
argument, and returns the results in rank order. Calls of the same size one after another share the process group, unless a
function failed or formed groups of its own. The first failure is raised with its rank and traceback; a rank that does not answer
in time ends the pool's processes (and only those).
"""

import contextlib
import logging
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed import distributed_c10d
from torchrec.distributed.collective_utils import init_collective_validation

from sharding.world import World, current_world


class RankFailedError(AssertionError):
    """A rank raised or did not answer; the message holds its number and traceback."""


def _no_work(world: World) -> None:
    """Do nothing: for processes that are not part of a call."""


@dataclass(frozen=True)
class Group:
    """A process group as one of its ranks forms it."""

    rank: int
    world_size: int
    # File through which its ranks meet; of this group only.
    store: str
    # Seconds that an operation may take.
    timeout: float


def _form(group: Group) -> None:
    """Form a process group in place of the present one. Collective."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{group.store}",
        rank=group.rank,
        world_size=group.world_size,
        timeout=timedelta(seconds=group.timeout),
    )
    # A rank has its connections before the others have theirs. A function that fails at once would close them
    # while another rank still connects: that rank would fail in forming the group, with another error.
    dist.barrier()
    # TorchRec does this once per process, collectively: do it where every process is sure to take part.
    init_collective_validation(dist.group.WORLD)


def _can_be_shared() -> bool:
    """Return whether the next function finds the process group as this one did: alone."""
    return dist.is_initialized() and len(distributed_c10d._world.pg_map) == 1


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.DEBUG)  # torch writes thousands of messages about checkpoints that nobody reads

    formed: Group | None = None
    while True:
        message = pipe.recv()
        if message is None:
            return
        function, arguments, group = message
        try:
            if group != formed:
                _form(group)
                formed = group
            value = function(current_world(torch.device("cpu")), *arguments)
            answer = ("done", value, _can_be_shared())
        except BaseException as error:  # noqa: BLE001 - a process boundary: whatever it is, the test must see it
            formed = None
            if dist.is_initialized():
                dist.destroy_process_group()
            answer = ("failed", (error if isinstance(error, Exception) else None, traceback.format_exc()), False)
        try:
            pipe.send(answer)
        except Exception:  # noqa: BLE001 - an exception that cannot be pickled still has a traceback
            pipe.send(("failed", (None, traceback.format_exc() + str(answer[1][-1])), False))


class RankPool:
    """At most `size` rank processes."""

    def __init__(self, size: int = 4, may_start: Callable[[], None] = lambda: None) -> None:
        """Start nothing yet. `may_start` is called before each run, and raises if the caller may not use rank processes."""
        self.size = size
        self._may_start = may_start
        self._folder = tempfile.TemporaryDirectory(prefix="shoal-ranks-")
        self._num_groups = 0
        self._shared: tuple[int, float] | None = None  # world size and timeout of the group that the next call may use
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def _start(self) -> None:
        # The server imports the trainer once, and each rank is a fork of it: four imports take longer than many a test.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "trainer.loop.train"])
        for _ in range(self.size):
            actual, expected = context.Pipe()
            process = context.Process(target=_serve, args=(expected,), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(actual)

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any, deadline: float = 120.0) -> list[Any]:
        """Run function(world, *arguments) on ranks 0 .. world_size - 1; return their results in rank order."""
        self._may_start()
        if not self._processes:
            self._start()
        if self._shared != (world_size, deadline):
            self._num_groups += 1
        self._shared = None
        store = str(Path(self._folder.name) / f"store-{self._num_groups}")
        for rank, pipe in enumerate(self._pipes):
            if rank < world_size:
                pipe.send((function, arguments, Group(rank, world_size, store, deadline)))
            else:
                # Groups are numbered within a process, and their numbers must agree: the others form one of their own.
                pipe.send((_no_work, (), Group(0, 1, f"{store}-{rank}", deadline)))
        end = time.monotonic() + deadline
        answers: list[Any] = [None] * self.size
        waiting = set(range(self.size))
        failure: tuple[int, Any] | None = None
        can_be_shared = True
        while waiting and (left := end - time.monotonic()) > 0:
            ready = wait([self._pipes[rank] for rank in waiting], left)
            for rank in sorted(rank for rank in waiting if self._pipes[rank] in ready):
                status, value, shared = self._pipes[rank].recv()
                waiting.discard(rank)
                answers[rank] = value
                can_be_shared = can_be_shared and shared
                if status == "failed" and failure is None:
                    failure = (rank, value)
                    end = min(end, time.monotonic() + 10.0)  # the others may now wait for it in vain
        if waiting:
            self.stop()
        elif can_be_shared:
            self._shared = (world_size, deadline)
        if failure is not None:
            rank, (error, text) = failure
            if error is not None:
                error.add_note(f"rank {rank} of {world_size}:\n{text}")
                raise error
            raise RankFailedError(f"rank {rank} of {world_size} failed:\n{text}")
        if waiting:
            raise RankFailedError(f"ranks {sorted(waiting)} of {world_size} did not answer within {deadline} s")
        return answers[:world_size]

    def stop(self) -> None:
        """End the processes that this pool started, by handle."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            with contextlib.suppress(OSError):
                pipe.send(None)
            process.join(timeout=0.5)
            if process.is_alive():
                process.kill()
                process.join(timeout=5.0)
        self._processes, self._pipes = [], []
        self._shared = None
