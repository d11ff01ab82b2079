"""Workers are launched once for several works, and a work's failure, stop and memory stay its own."""

import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.config.run_config import ClusterConfig, RecoveryConfig
from cluster.errors import WorkersFailedError
from cluster.workers.group import Workers
from sharding.world import World
from trainer.config.job import Channel
from trainer.errors import UserError

TWO = ClusterConfig(num_workers=2, recovery=RecoveryConfig(failures_per_hour=1))
DEADLINE = 60.0


def process_and_sum(argument: int, world: World, channel: Channel) -> tuple[int, int, float]:
    """Return rank, process and a sum over ranks: they share a process group."""
    channel.send({"kind": "here", "rank": world.rank, "argument": argument})
    total = torch.tensor(float(argument + world.rank))
    dist.all_reduce(total)
    return world.rank, os.getpid(), total.item()


def is_stopped_within(seconds: float, world: World, channel: Channel) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if channel.stop_requested():
            return True
        time.sleep(0.01)
    return False


def fail(error: UserError, world: World, channel: Channel) -> None:
    if world.rank == 1:
        raise error


def disappear(argument: None, world: World, channel: Channel) -> None:
    if world.rank == 1:
        os._exit(3)
    time.sleep(DEADLINE)


def disappear_once(marker: str, world: World, channel: Channel) -> int:
    if world.rank == 1 and not os.path.exists(marker):
        open(marker, "w").close()
        os._exit(3)
    total = torch.ones(1)
    dist.all_reduce(total)
    return int(total)


def ignore(event: dict[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def workers(ray_session: None) -> Iterator[Workers]:
    with Workers(TWO) as workers:
        yield workers


def test_works_share_processes_and_nothing_else(workers: Workers) -> None:
    events: list[dict[str, Any]] = []
    first = workers.run(process_and_sum, 10, events.append)
    stop = threading.Event()
    stop.set()
    assert workers.run(is_stopped_within, DEADLINE, ignore, stop) == [True, True]
    assert workers.run(is_stopped_within, 1.0, ignore) == [False, False]
    second = workers.run(process_and_sum, 20, events.append)
    assert [(rank, total) for rank, _, total in first] == [(0, 21.0), (1, 21.0)]
    assert [(rank, total) for rank, _, total in second] == [(0, 41.0), (1, 41.0)]
    assert [pid for _, pid, _ in first] == [pid for _, pid, _ in second]
    assert sorted((event["argument"], event["rank"]) for event in events) == [(10, 0), (10, 1), (20, 0), (20, 1)]


def test_a_failure_is_named_and_the_next_work_finds_new_workers(workers: Workers, tmp_path: Path) -> None:
    before = workers.run(process_and_sum, 1, ignore)
    with pytest.raises(UserError, match="change it"):
        workers.run(fail, UserError("change it"), ignore)
    after = workers.run(process_and_sum, 1, ignore)
    assert {pid for _, pid, _ in before}.isdisjoint(pid for _, pid, _ in after)
    events: list[dict[str, Any]] = []
    assert workers.run(disappear_once, str(tmp_path / "gone"), events.append) == [2, 2]
    restarts = [event["text"] for event in events if event["kind"] == "restart"]
    assert len(restarts) == 1
    assert re.match(r"rank 1 on \S+ died while it started: .*; restarting .* \(failure 1 of this hour\)$", restarts[0])
    with pytest.raises(WorkersFailedError, match=r"rank 1 died"):
        workers.run(disappear, None, ignore)
