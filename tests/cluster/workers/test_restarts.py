"""Decisions after a failure: what counts against the budget, and what is only waited for."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError

from cluster.config.run_config import RecoveryConfig
from cluster.workers import restarts
from cluster.workers.restarts import RestartPolicy

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


class Messages:
    """A mailbox in this process: each method has `remote`, and `ray.get` returns what that returns."""

    def __init__(self) -> None:
        self.step = 7
        self.warnings: list[str] = []
        self.restarts: list[str] = []
        self.failed = SimpleNamespace(remote=lambda: ([], {}, {}, self.step))
        self.push = SimpleNamespace(remote=lambda event: self.warnings.append(event["text"]))
        self.restart = SimpleNamespace(remote=lambda event: self.restarts.append(event["cause"]))


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Messages:
    monkeypatch.setattr(restarts.ray, "get", lambda value: value)
    return Messages()


def policy_of(messages: Messages, **limits: Any) -> RestartPolicy:
    return RestartPolicy(FailureConfig(max_failures=-1), messages, RecoveryConfig(**limits))


def no_room() -> ControllerError:
    return ControllerError(WorkerGroupStartupTimeoutError(num_workers=2))


def test_a_wait_for_resources_is_no_failure(messages: Messages) -> None:
    policy = policy_of(messages, failures_per_hour=0)
    assert [policy.make_decision(no_room()) for _ in range(5)] == [RETRY] * 5
    assert messages.warnings == ["waiting for the resources of workers, which no node has free"]
    assert messages.restarts == []


def test_a_wait_for_resources_ends(messages: Messages, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(restarts.time, "monotonic", lambda: now[0])
    policy = policy_of(messages, start_seconds=60.0)
    assert policy.make_decision(no_room()) == RETRY
    now[0] += 59.0
    assert policy.make_decision(no_room()) == RETRY
    messages.step += 1  # workers came and trained in between: another wait
    now[0] += 59.0
    assert policy.make_decision(no_room()) == RETRY
    now[0] += 61.0
    assert policy.make_decision(no_room()) == RAISE
    assert messages.warnings[-1] == "no restart: no resources for workers within 61 s (cluster.recovery.start_seconds)"


def test_a_group_that_cannot_start_is_a_failure(messages: Messages) -> None:
    policy = policy_of(messages, failures_per_hour=1, backoff_seconds=0.0)
    broken = ControllerError(WorkerGroupStartupFailedError("no import"))
    assert [policy.make_decision(broken) for _ in range(2)] == [RETRY, RAISE]
    assert messages.restarts == ["failure"]
