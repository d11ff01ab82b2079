"""What passes between driver and workers, without Ray: works, stops, events, and who is named for a failure."""

import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray import exceptions as ray_exceptions

from cluster.config.run_config import ClusterConfig
from cluster.errors import JobCancelledError
from cluster.workers import group as launch
from cluster.workers.failures import cause_of
from cluster.workers.group import Workers
from cluster.workers.mailbox import Beat, Interruption, Mailbox, Move, Place, WorkerFailure
from cluster.workers.moves import Advice, Moves
from trainer.config.job import Channel

DEADLINE = 20.0
HERE = Place("here", "node", 1, 0.0)


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
        for rank in (1, 0):
            self._mailbox.enter.remote(rank, 2, HERE)
        done, end = 0, time.monotonic() + DEADLINE
        while time.monotonic() < end:
            number, job = self._mailbox.job.remote()
            if number == done:
                time.sleep(0.01)
                continue
            if job is None:
                return
            function, argument = cloudpickle.loads(job)
            channel = Channel(
                send=self._mailbox.push.remote,
                stop_requested=lambda: self._mailbox.requests.remote()[0],
                validations_made=lambda: self._mailbox.requests.remote()[2],
            )
            for rank in (1, 0):
                self._mailbox.finish.remote(1, rank, pickle.dumps(function(argument, rank, channel)))
            done = number


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    ray = SimpleNamespace(
        remote=lambda **_: lambda held: SimpleNamespace(remote=lambda *given: FakeActor(held(*given))),
        get=lambda value, timeout=None: value,
        kill=lambda actor: None,
        exceptions=ray_exceptions,
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "0" * 56),
    )
    monkeypatch.setattr(launch, "ray", ray)
    make_trainer: Callable[..., FakeTrainer] = lambda config, mailbox, storage, logs, name: FakeTrainer(mailbox)  # noqa: E731
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


def test_a_job_that_is_cancelled_ends_its_workers_and_the_next_one_starts_others(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(launch.ray, "kill", killed.append)
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(JobCancelledError):
        workers.run(is_stopped_within, DEADLINE / 4, ignore, cancel=cancel)
    assert time.monotonic() - started < DEADLINE / 8
    assert len(killed) == 1  # the mailbox of those workers
    assert workers.run(name_rank, "next", ignore) == ["next 0", "next 1"]


def validations_noted(argument: None, rank: int, channel: Channel) -> int:
    end = time.monotonic() + DEADLINE / 4
    while time.monotonic() < end and not channel.validations_made():
        time.sleep(0.01)
    return channel.validations_made()


def test_workers_learn_that_others_have_validated_a_checkpoint(workers: Workers) -> None:
    workers.note_validation()  # nothing runs, and nobody needs to know
    threading.Timer(0.3, workers.note_validation).start()
    assert workers.run(validations_noted, None, ignore) == [1, 1]


def test_workers_go_on_while_the_head_does_not_say_which_nodes_there_are(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*arguments: Any) -> Advice:
        raise RuntimeError("Failed to connect to GCS")

    monkeypatch.setattr(Moves, "look", look)
    assert workers.run(name_rank_late, "job", ignore) == ["job 0", "job 1"]


def test_workers_are_asked_to_move_when_the_nodes_say_so(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Moves, "look", lambda *arguments: Advice(move=Move("resize", "there is room")))
    assert workers.run(is_stopped_within, DEADLINE / 2, ignore) == [True, True]


def test_the_mailbox_is_on_the_node_of_the_driver_and_nowhere_else(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a soft affinity Ray placed it on another node, which was lost."""
    asked: list[Any] = []
    remote = launch.ray.remote
    monkeypatch.setattr(launch.ray, "remote", lambda **given: asked.append(given) or remote(**given))
    workers.run(name_rank, "job", ignore)
    strategy = asked[0]["scheduling_strategy"]
    assert (strategy.node_id, strategy.soft) == ("0" * 56, False)


def test_the_mailbox_starts_each_work_afresh() -> None:
    mailbox = Mailbox()
    mailbox.give(b"first")
    mailbox.request_stop()
    mailbox.finish(mailbox.enter(0, 1, HERE), 0, b"result")
    mailbox.give(b"second")
    assert mailbox.job() == (2, b"second")
    assert mailbox.requests() == (False, 0, 0)
    status = mailbox.drain()
    assert (status.events, status.num_done, status.world_size, list(status.beats)) == ([], 0, 1, [0])
    assert mailbox.outcome() == ({}, [])


def test_a_request_for_a_checkpoint_is_counted_until_the_workers_start_again() -> None:
    mailbox = Mailbox()
    mailbox.request_save()
    mailbox.request_save()
    assert mailbox.requests() == (False, 2, 0)
    mailbox.restart({"kind": "restart"})
    assert mailbox.requests() == (False, 0, 0)


def test_what_an_earlier_attempt_sends_is_ignored_after_a_restart() -> None:
    mailbox = Mailbox()
    mailbox.give(b"job")
    first = mailbox.enter(0, 2, HERE)
    mailbox.beat(first, 0, Beat(HERE, "step", 7, 0.5))
    mailbox.accuse(0, "hangs")
    mailbox.restart({"kind": "restart"})
    second = mailbox.enter(0, 1, HERE)
    mailbox.finish(first, 0, b"late")
    mailbox.fail(first, failure(0))
    mailbox.beat(first, 0, Beat(HERE, "step", 99, 0.5))
    status = mailbox.drain()
    assert (status.events, status.num_done, status.world_size) == ([{"kind": "restart"}], 0, 1)
    assert status.beats[0].phase == "start"
    failures, accused, _, newest = mailbox.failed()
    assert (failures, accused, newest) == ([], {}, 7)
    mailbox.finish(second, 0, b"result")
    assert mailbox.outcome() == ({0: b"result"}, [])
    assert mailbox.job() == (1, b"job")


def test_a_recovery_is_measured_from_the_last_sign_of_life_of_the_rank_that_fell_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now, now=1000.0)
    monkeypatch.setattr("cluster.workers.mailbox.time", clock)
    mailbox = Mailbox()
    mailbox.give(b"job")
    attempt, _ = (mailbox.enter(rank, 2, HERE) for rank in (0, 1))
    mailbox.beat(attempt, 1, Beat(HERE, "step", 30, examples=240))
    clock.now = 1003.0
    mailbox.fail(attempt, replace(failure(0), step=33, examples=264))
    clock.now = 1004.0
    mailbox.restart({"kind": "restart"})
    clock.now = 1009.0
    attempt, _ = (mailbox.enter(rank, 2, replace(HERE, created=1006.0)) for rank in (0, 1))
    clock.now = 1012.0
    mailbox.training(attempt - 1, 25, 200, {})  # of a rank of the earlier group
    mailbox.training(attempt, 25, 200, {"imports": 2.5})
    mailbox.training(attempt, 25, 200, {"imports": 2.5})
    recovered = [event for event in mailbox.drain().events if event["kind"] == "recovered"]
    parts = {"detection": 4.0, "end of the group": 2.0, "start of workers": 3.0, "imports": 2.5}
    assert recovered == [{"kind": "recovered", "seconds": 12.0, "parts": parts, "steps": 8, "rows": 64}]


def test_a_group_that_fails_before_it_started_adds_to_the_time_of_the_first_failure() -> None:
    mailbox = Mailbox()
    mailbox.give(b"job")
    mailbox.enter(0, 1, HERE)
    mailbox.restart({"kind": "restart"})
    first = mailbox.interruption()
    mailbox.restart({"kind": "restart"})
    assert mailbox.interruption().failed == first.failed


def test_a_group_of_another_size_is_another_attempt() -> None:
    mailbox = Mailbox()
    mailbox.give(b"job")
    first = mailbox.enter(0, 1, HERE)
    second = {mailbox.enter(rank, 2, HERE) for rank in (1, 0)}
    mailbox.finish(first, 0, b"late")
    assert second == {first + 1}
    status = mailbox.drain()
    assert (status.num_done, status.world_size, [event["cause"] for event in status.events]) == (0, 2, ["resize"])


def test_a_launch_after_a_lost_one_reports_the_recovery_of_that_one() -> None:
    mailbox = Mailbox(Interruption(1.0, 2.0, 33, 264))
    mailbox.give(b"job")
    attempt = mailbox.enter(0, 1, HERE)
    mailbox.training(attempt, 25, 200, {})
    assert [(event["steps"], event["rows"]) for event in mailbox.drain().events] == [(8, 64)]


def failure(rank: int, cause: str = "", user_message: str | None = None) -> WorkerFailure:
    return WorkerFailure(rank, cause or f"ValueError: of rank {rank}", user_message, f"trace of rank {rank}")


def died(**causes: str) -> dict[int, BaseException]:
    """Return what Ray Train knows of the outcome of workers."""
    return {int(rank[1:]): RuntimeError(cause) for rank, cause in causes.items()}


BEATS = {0: Beat(HERE, "step", 41), 2: Beat(HERE, "data", 41)}


def text_of(*arguments: Any) -> str:
    cause = cause_of(*arguments)
    assert cause is not None
    return cause.text


def test_the_first_rank_that_failed_is_named_with_its_cause() -> None:
    text = text_of([failure(1), failure(0)], died(r1="of rank 1", r0="of rank 0"))
    assert text == "rank 1 failed: ValueError: of rank 1 (1 more failed with it)"


def test_a_rank_that_could_not_speak_is_named_before_those_that_lost_it() -> None:
    lost = failure(0, "RuntimeError: connection closed by peer")
    cause = cause_of([lost], died(r0="connection closed by peer", r2="killed"), {}, BEATS)
    assert cause is not None
    assert cause.text == "rank 2 on here died while it read the data of step 42: killed (1 more failed with it)"
    assert "trace of rank 0" in cause.trace


def test_a_dead_rank_is_placed_in_the_step_in_which_the_others_lost_it() -> None:
    lost = replace(failure(0, "RuntimeError: connection closed by peer"), step=57, phase="step")
    text = text_of([lost], died(r0="closed", r2="killed"), {}, BEATS)
    assert text == "rank 2 on here died in step 58: killed (1 more failed with it)"


def test_a_rank_that_dies_soon_after_its_start_is_placed_where_the_others_lost_it() -> None:
    just_started = {2: Beat(HERE)}
    lost = replace(failure(0, "RuntimeError: connection closed by peer"), step=150, phase="evaluation")
    text = text_of([lost], died(r0="closed", r2="killed"), {}, just_started)
    assert text == "rank 2 on here died in the evaluation after step 150: killed (1 more failed with it)"
    text = text_of([replace(lost, step=0, phase="start")], died(r0="closed", r2="killed"), {}, just_started)
    assert text == "rank 2 on here died while it started: killed (1 more failed with it)"


def test_what_a_rank_says_of_its_files_does_not_count_if_another_died() -> None:
    """A broken connection while a checkpoint is loaded looks like a checkpoint that does not fit."""
    lost = failure(0, user_message="checkpoint step_3: does not fit the model (connection closed by peer)")
    cause = cause_of([lost], died(r0="does not fit", r2="killed"))
    assert cause is not None
    assert (cause.user_message, cause.text) == (None, "rank 2 died: killed (1 more failed with it)")


def test_a_rank_that_was_killed_is_named_with_the_reason() -> None:
    lost = failure(0, "RuntimeError: connection closed by peer")
    text = text_of(
        [lost], died(r0="closed", r2="killed"), {2: "stopped in step 42, without a sign of life for 20 s"}, BEATS
    )
    assert text == "rank 2 on here stopped in step 42, without a sign of life for 20 s (1 more failed with it)"


def test_a_rank_that_died_when_memory_was_nearly_gone_is_said_to_be_killed_for_it() -> None:
    full = {2: replace(BEATS[2], used_bytes=20 << 30, free_bytes=200 << 20)}
    assert "probably killed for memory: it used 20.0 GiB, and its machine had 0.2 GiB left" in text_of(
        [], died(r2="killed"), {}, full
    )
    enough = {2: replace(BEATS[2], used_bytes=20 << 30, free_bytes=4 << 30)}
    assert "memory" not in text_of([], died(r2="killed"), {}, enough)
    assert "Ray killed it because its machine ran low on memory" in text_of(
        [], died(r2="The actor died.\nThe node was running low on memory (0.98 of 0.95)."), {}, enough
    )


def test_a_mistake_of_the_user_is_reported_alone() -> None:
    cause = cause_of([failure(0), failure(1, user_message="tables.item.dim is wrong")], died(r0="x"))
    assert cause is not None
    assert cause.user_message == cause.text == "tables.item.dim is wrong"


def test_nothing_is_known_of_a_group_that_fails_without_a_message() -> None:
    assert cause_of([], {}) is None
