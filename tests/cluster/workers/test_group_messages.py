"""What passes between driver and workers, without Ray: works, stops, events, and who is named for a failure."""

import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from cluster.config.run_config import ClusterConfig
from cluster.workers import group as launch
from cluster.workers.group import Workers, WorkersFailedError, _raise_failures
from cluster.workers.mailbox import Mailbox, WorkerFailure
from trainer.config.job import Channel
from trainer.errors import UserError

DEADLINE = 20.0


class FakeActor:
    """An actor in this process: `actor.method.remote(...)` is a call under a lock."""

    def __init__(self, held: Any) -> None:
        self._held, self._lock = held, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            with self._lock:
                return getattr(self._held, name)(*arguments)

        return SimpleNamespace(remote=call)


class FakeTrainer:
    """Two workers that do their works one after the other, the second one first."""

    def __init__(self, mailbox: FakeActor) -> None:
        self._mailbox = mailbox

    def fit(self) -> None:
        done, end = 0, time.monotonic() + DEADLINE
        while time.monotonic() < end:
            number, job = self._mailbox.job.remote()
            if number == done:
                time.sleep(0.01)
                continue
            if job is None:
                return
            function, argument = cloudpickle.loads(job)
            channel = Channel(send=self._mailbox.push.remote, stop_requested=self._mailbox.stop_requested.remote)
            for rank in (1, 0):
                self._mailbox.finish.remote(rank, pickle.dumps(function(argument, rank, channel)))
            done = number


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    ray = SimpleNamespace(
        remote=lambda **_: lambda held: SimpleNamespace(remote=lambda: FakeActor(held())),
        get=lambda value: value,
        kill=lambda actor: None,
    )
    monkeypatch.setattr(launch, "ray", ray)
    make_trainer: Callable[..., FakeTrainer] = lambda config, mailbox, storage: FakeTrainer(mailbox)  # noqa: E731
    monkeypatch.setitem(sys.modules, "cluster.workers.ray_train", SimpleNamespace(make_trainer=make_trainer))
    with Workers(ClusterConfig(num_workers=2)) as workers:
        yield workers


def name_rank(argument: str, rank: int, channel: Channel) -> str:
    channel.send({"kind": "here", "rank": rank})
    return f"{argument} {rank}"


def name_rank_late(argument: str, rank: int, channel: Channel) -> str:
    time.sleep(0.4)
    return name_rank(argument, rank, channel)


def is_stopped_within(seconds: float, rank: int, channel: Channel) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not channel.stop_requested():
        time.sleep(0.01)
    return channel.stop_requested()


def ignore(event: dict[str, Any]) -> None:
    pass


def test_results_come_in_rank_order_and_every_event_arrives(workers: Workers) -> None:
    events: list[dict[str, Any]] = []
    assert workers.run(name_rank, "first", events.append) == ["first 0", "first 1"]
    assert workers.run(name_rank_late, "second", events.append) == ["second 0", "second 1"]
    assert [event["rank"] for event in events] == [1, 0, 1, 0]


def test_a_stop_reaches_the_work_that_is_asked_to_stop_and_no_other(workers: Workers) -> None:
    stop = threading.Event()
    stop.set()
    assert workers.run(is_stopped_within, DEADLINE / 2, ignore, stop) == [True, True]
    assert workers.run(is_stopped_within, 0.3, ignore) == [False, False]


def test_the_mailbox_starts_each_work_afresh() -> None:
    mailbox = Mailbox()
    mailbox.give(b"first")
    mailbox.request_stop()
    mailbox.finish(0, b"result")
    mailbox.give(b"second")
    assert mailbox.job() == (2, b"second")
    assert not mailbox.stop_requested()
    assert mailbox.drain() == ([], 0)
    assert mailbox.outcome() == ({}, [])


def failure(rank: int, cause: str = "", user_message: str | None = None) -> WorkerFailure:
    return WorkerFailure(rank, cause or f"ValueError: of rank {rank}", user_message, f"trace of rank {rank}")


def died(**causes: str) -> Exception:
    """Return the error as Ray Train raises it, with the outcome of every worker."""
    error = RuntimeError("worker group")
    error.worker_failures = {int(rank[1:]): RuntimeError(cause) for rank, cause in causes.items()}  # type: ignore[attr-defined]
    return error


def test_the_first_rank_that_failed_is_named_with_its_cause() -> None:
    raised: list[BaseException] = [died(r1="of rank 1", r0="of rank 0")]
    with pytest.raises(WorkersFailedError, match=r"^rank 1 failed: ValueError: of rank 1 \(1 more failed with it\)$"):
        _raise_failures([failure(1), failure(0)], raised)


def test_a_rank_that_could_not_speak_is_named_before_those_that_lost_it() -> None:
    lost = failure(0, "RuntimeError: connection closed by peer")
    with pytest.raises(WorkersFailedError, match=r"^rank 2 died: killed \(1 more failed with it\)$") as caught:
        _raise_failures([lost], [died(r0="connection closed by peer", r2="killed")])
    assert "trace of rank 0" in caught.value.trace


def test_a_mistake_of_the_user_is_reported_alone() -> None:
    failures = [failure(0), failure(1, user_message="tables.item.dim is wrong")]
    with pytest.raises(UserError, match=r"^tables\.item\.dim is wrong$"):
        _raise_failures(failures, [died(r0="x")])


def test_a_group_that_fails_without_a_message_is_an_error() -> None:
    with pytest.raises(WorkersFailedError, match=r"^the group of workers failed: no nodes$"):
        _raise_failures([], [RuntimeError("no nodes")])
    with pytest.raises(WorkersFailedError, match="ended before its job was done"):
        _raise_failures([], [])
