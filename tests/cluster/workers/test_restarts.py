"""Decisions after workers have ended: what counts against a budget."""

import os
import pickle
from typing import Any

import psutil
import pytest
from ray import cloudpickle
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cluster.config.run_config import RecoveryConfig
from cluster.errors import MoveError
from cluster.workers import restarts
from cluster.workers.group import _no_room
from cluster.workers.mailbox import Mailbox, Move, Place, WorkerFailure
from cluster.workers.nodes import Node
from cluster.workers.restarts import RestartPolicy
from cluster.workers.scaling import NoRoomError
from cluster.workers.worker import _result_of
from tests.cluster.workers.test_group_messages import FakeActor
from trainer.config.job import SILENT, Outcome

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE
LEAVE = Move("preemption", "the cluster takes back b, with rank 1, in 30 s")


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    monkeypatch.setattr(restarts.ray, "get", lambda value: value)
    monkeypatch.setattr(restarts, "alive_nodes", no_head)
    monkeypatch.setattr(restarts, "_own_node", lambda: "here")
    return Mailbox()


def no_head() -> list[Node]:
    raise RuntimeError("no head")


def policy_of(mailbox: Mailbox, **limits: Any) -> RestartPolicy:
    config = RecoveryConfig(**{"backoff_seconds": 0.0, **limits})
    return RestartPolicy(FailureConfig(max_failures=-1), FakeActor(mailbox), config)


def ended(**errors: BaseException) -> WorkerGroupError:
    return WorkerGroupError("", {int(rank[1:]): error for rank, error in errors.items()})


def wrapped(error: BaseException) -> BaseException:
    """Return an error as Ray Train hands it over."""
    outer = RuntimeError("Ray")
    outer._base_exc = error  # type: ignore[attr-defined]
    return outer


def events(mailbox: Mailbox) -> list[tuple[str, str]]:
    return [(event.get("cause", event["kind"]), event["text"]) for event in mailbox.drain().events]


def test_a_move_to_nodes_that_were_added_is_no_failure(mailbox: Mailbox) -> None:
    policy = policy_of(mailbox, failures_per_hour=0, preemptions_per_hour=0)
    for _ in range(3):
        mailbox.request_move(Move("resize", "the cluster has room for 2 workers, and 1 run"))
        assert policy.make_decision(ended(r0=wrapped(MoveError("m")), r1=MoveError("m"))) == RETRY
    text = "the cluster has room for 2 workers, and 1 run; restarting from the newest checkpoint"
    assert events(mailbox) == [("resize", text)] * 3
    assert mailbox.move() is None


def test_a_move_away_from_a_node_counts_as_a_preemption(mailbox: Mailbox) -> None:
    policy = policy_of(mailbox, failures_per_hour=0, preemptions_per_hour=1)
    mailbox.request_move(LEAVE)
    assert policy.make_decision(ended(r0=MoveError("m"))) == RETRY
    assert events(mailbox) == [
        ("preemption", f"{LEAVE.text}; restarting from the newest checkpoint (preemption 1 of this hour)")
    ]
    mailbox.request_move(LEAVE)
    assert policy.make_decision(ended(r0=MoveError("m"))) == RAISE
    assert events(mailbox) == [("warning", "no restart: 2 preemptions within an hour")]


def test_a_rank_that_dies_during_a_move_is_a_failure(mailbox: Mailbox) -> None:
    policy = policy_of(mailbox, failures_per_hour=1)
    mailbox.request_move(LEAVE)
    assert policy.make_decision(ended(r0=MoveError("m"), r1=RuntimeError("killed"))) == RETRY
    assert [cause for cause, _ in events(mailbox)] == ["failure"]
    assert mailbox.requests() == (False, 0, 0)


def test_a_rank_is_named_that_was_lost_with_its_node(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Node(name, "", 0, {}, {}) for name in "abc"]
    monkeypatch.setattr(restarts, "alive_nodes", lambda: nodes)
    monkeypatch.setattr(restarts, "unreachable", lambda nodes: {node.id for node in nodes} & {"b", "c"})
    for rank, node in enumerate("ab"):
        attempt = mailbox.enter(rank, 2, Place(f"host-{node}", node, 1, 0.0))
    mailbox.fail(attempt, WorkerFailure(0, "RuntimeError: connection closed", None, ""))
    assert policy_of(mailbox).make_decision(ended(r0=RuntimeError("connection closed"))) == RETRY
    ((cause, text),) = events(mailbox)
    assert cause == "failure"
    assert text.startswith("rank 1 on host-b was lost: its node does not answer")


def test_a_rank_that_ended_is_named_before_ray_knows_of_it(mailbox: Mailbox) -> None:
    """Ray reported the rank with a broken connection first, and the run was said to have failed there."""
    alive = Place("host", "here", os.getpid(), psutil.Process().create_time())
    gone = Place("host", "here", alive.pid, alive.created - 60.0)  # of an earlier process with the same number
    for rank, place in enumerate((alive, gone, Place("other", "elsewhere", 1, 0.0))):
        attempt = mailbox.enter(rank, 3, place)
    mailbox.fail(attempt, WorkerFailure(0, "RuntimeError: connection closed", None, ""))
    assert policy_of(mailbox).make_decision(ended(r0=RuntimeError("connection closed"))) == RETRY
    ((_, text),) = events(mailbox)
    assert text.startswith("rank 1 on host died while it started: its process has ended (1 more failed with it)")


def test_a_run_that_is_stopped_does_not_move(mailbox: Mailbox) -> None:
    mailbox.request_move(LEAVE)
    assert mailbox.requests() == (True, 0, 0)
    mailbox.request_stop()
    assert mailbox.move() is None


def test_a_run_for_which_no_nodes_came_ends(mailbox: Mailbox) -> None:
    assert policy_of(mailbox).make_decision(ControllerError(NoRoomError("no nodes"))) == RAISE


@pytest.mark.parametrize(
    ("reason", "move", "moves"), [("stopped", LEAVE, True), ("finished", LEAVE, False), ("stopped", None, False)]
)
def test_a_training_that_stopped_for_a_move_ends_its_rank(reason: str, move: Move | None, moves: bool) -> None:
    outcome = Outcome(reason, 7, None, None)
    job = cloudpickle.dumps((lambda argument, world, channel: argument, outcome))
    if moves:
        with pytest.raises(MoveError, match="takes back b"):
            _result_of(job, None, SILENT, lambda: move)  # type: ignore[arg-type]
    else:
        assert pickle.loads(_result_of(job, None, SILENT, lambda: move)) == outcome  # type: ignore[arg-type]


def test_the_end_of_a_wait_for_nodes_survives_the_way_to_the_driver() -> None:
    error = pickle.loads(pickle.dumps(ControllerError(NoRoomError("no nodes for 2 workers"))))
    assert _no_room(error) == "no nodes for 2 workers"
    assert _no_room(ended(r0=RuntimeError("killed"))) is None
    assert _no_room(None) is None
