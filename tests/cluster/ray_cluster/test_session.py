"""Which Ray a command uses: one of its own on this machine, the one that is named, or the caller's. Ray is a fake here."""

import errno
import os
from typing import Any

import pytest

from cluster.config.run_config import ClusterConfig
from cluster.ray_cluster import session
from cluster.ray_cluster.session import RaySession, ray_session
from trainer.errors import UserError


class FakeRay:
    """Remembers how it was started and whether it was shut down."""

    def __init__(self, running: bool, **resources: float) -> None:
        self.running, self.resources = running, resources
        self.failures: list[Exception] = []  # of the next starts
        self.started: list[dict[str, Any]] = []

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **options: Any) -> None:
        self.started.append(options)
        if self.failures:
            raise self.failures.pop(0)
        self.running = True

    def nodes(self) -> list[dict[str, Any]]:
        node = {"NodeManagerAddress": "10.0.0.1", "Alive": True}
        return [{**node, "Resources": self.resources}, {**node, "Resources": {"CPU": 99.0, "GPU": 9.0}, "Alive": False}]

    def shutdown(self) -> None:
        self.running = False


def use(monkeypatch: pytest.MonkeyPatch, running: bool = False, **resources: float) -> FakeRay:
    fake = FakeRay(running, **resources)
    monkeypatch.setattr(session, "ray", fake)
    monkeypatch.setattr(session, "check_cluster", lambda address: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return fake


def test_without_an_address_a_new_session_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = use(monkeypatch, CPU=4.0)
    with ray_session(ClusterConfig(num_workers=2)):
        assert fake.running
    (options,) = fake.started
    assert options["address"] == "local"
    assert not fake.running


PORT_TAKEN = RuntimeError("Failed to start GCS.  Last 1 lines of error files:\nAddress already in use")
NO_ANSWER = Exception("The current node timed out during startup.")  # as Ray raises it


@pytest.mark.parametrize("failure", [PORT_TAKEN, NO_ANSWER])
def test_a_cluster_that_does_not_start_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    fake = use(monkeypatch, CPU=4.0)
    fake.failures = [failure]
    said: list[str] = []
    with RaySession(ClusterConfig(num_workers=2), said.append) as opened:
        opened.connect()
        assert fake.running
    first, second = fake.started
    assert first == second
    assert said == [
        "Ray: starting on this machine",
        "Ray: did not start, maybe because another cluster took its port; starting again",
    ]


def test_a_second_failure_is_one_message_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, CPU=4.0)
    fake.failures = [NO_ANSWER, PORT_TAKEN]
    message = (
        r"did not start on this machine in two attempts \(Failed to start GCS.*session_latest/logs; `shoal doctor`"
    )
    with pytest.raises(UserError, match=message) as refused, ray_session(ClusterConfig(num_workers=2)):
        pass
    assert refused.value.__cause__ is PORT_TAKEN
    assert len(fake.started) == 2


@pytest.mark.parametrize("failure", [ValueError("no such option"), OSError(errno.ENOSPC, "no space left")])
def test_other_errors_of_a_start_are_not_retried(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    fake = use(monkeypatch, CPU=4.0)
    fake.failures = [failure]
    with pytest.raises(type(failure)) as raised, ray_session(ClusterConfig(num_workers=2)):
        pass
    assert raised.value is failure
    assert len(fake.started) == 1


def test_a_session_of_the_caller_is_used_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, running=True, CPU=4.0)
    with ray_session(ClusterConfig(num_workers=2)):
        pass
    assert fake.started == []
    assert fake.running


def test_more_workers_than_this_machine_has_cpus_are_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, CPU=1e9)
    config = ClusterConfig(num_workers=3, cpus_per_worker=2)
    message = r"cluster\.num_workers = 3 .* need\s+6 CPUs, and this machine has 4"
    with pytest.raises(UserError, match=message), ray_session(config):
        pass
    assert fake.started == []


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    ("resources", "settings", "message"),
    [
        (
            {"CPU": 3.0},
            {"num_workers": 2, "cpus_per_worker": 2},
            r"2 workers with 2 CPUs each do not fit: its nodes \(10\.0\.0\.1: 3 CPUs\) have room for 1",
        ),
        (
            {"CPU": 4.0, "GPU": 1.0},
            {"num_workers": 2, "gpus_per_worker": 1},
            r"2 workers with 1 CPU and 1 GPU each do not fit: .*4 CPUs and 1 GPUs\) have room for 1",
        ),
        (
            {"CPU": 4.0},
            {"num_workers": 1, "gpus_per_worker": 1},
            r"1 workers with 1 CPU and 1 GPU each do not fit: .*4 CPUs and 0 GPUs\) have room for 0",
        ),
    ],
)
def test_workers_that_a_cluster_could_never_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    running: bool,
    resources: dict[str, float],
    settings: dict[str, Any],
    message: str,
) -> None:
    """Ray itself would wait for ever."""
    fake = use(monkeypatch, running=running, **resources)
    with pytest.raises(UserError, match=message), ray_session(ClusterConfig(address="auto", **settings)):
        pass
    assert fake.running == running
