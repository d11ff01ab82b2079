"""Size of a group of workers that is about to start."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from cluster.config.run_config import ClusterConfig
from cluster.workers import scaling
from cluster.workers.nodes import Node
from cluster.workers.scaling import GroupSizePolicy, NoRoomError


class World:
    """A clock, nodes of one CPU each, and a mailbox, all in this process."""

    def __init__(self) -> None:
        self.now, self.nodes, self.busy = 100.0, "ab", ""
        self.draining: dict[str, int] = {}
        self.lost: set[str] = set()
        self.stopped = False
        self.told: list[str] = []
        self.mailbox = SimpleNamespace(
            reserved=SimpleNamespace(remote=lambda: None),
            is_stopped=SimpleNamespace(remote=lambda: self.stopped),
            push=SimpleNamespace(remote=lambda event: self.told.append(event["text"])),
        )

    def policy(self, **config: Any) -> GroupSizePolicy:
        cluster = ClusterConfig(**{"address": "auto", "num_workers": 2, **config})
        return GroupSizePolicy(ScalingConfig(num_workers=2), cluster, self.mailbox)

    def alive_nodes(self) -> list[Node]:
        return [
            Node(node, "", 0, {"CPU": 1.0}, {"CPU": float(node not in self.busy)}, {"ray.io/node-id": node})
            for node in self.nodes
        ]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(scaling.ray, "get", lambda value: value)
    monkeypatch.setattr(scaling, "time", SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep))
    monkeypatch.setattr(scaling, "alive_nodes", world.alive_nodes)
    monkeypatch.setattr(scaling, "draining_nodes", lambda: world.draining)
    monkeypatch.setattr(scaling, "unreachable", lambda nodes: world.lost)
    monkeypatch.setattr(scaling, "held_resources", lambda group: {})
    return world


def size_of(policy: GroupSizePolicy) -> int | None:
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision | NoopDecision)
    return decision.num_workers if isinstance(decision, ResizeDecision) else None


def test_a_group_starts_with_all_workers_if_there_is_room(world: World) -> None:
    assert size_of(world.policy()) == 2
    assert world.now == 100.0


def test_a_group_starts_smaller_at_once_if_a_node_is_lost_or_taken_back(world: World) -> None:
    policy = world.policy(min_workers=1)
    world.lost = {"b"}
    assert size_of(policy) == 1
    assert policy.on_controller_start_worker_group() == {"ray.io/node-id": "!in(b)"}
    world.lost, world.draining = set(), {"a": 0}
    assert size_of(policy) == 1
    assert policy.on_controller_start_worker_group() == {"ray.io/node-id": "!in(a)"}
    world.draining = {}
    assert size_of(policy) == 2
    assert policy.on_controller_start_worker_group() is None


def test_the_labels_of_the_config_stay_when_nodes_are_avoided(world: World) -> None:
    policy = world.policy(min_workers=1, placement={"labels": {"zone": "!b"}})
    assert size_of(policy) == 2
    assert policy.on_controller_start_worker_group() is None  # Ray Train has those of the config
    world.lost = {"b"}
    assert size_of(policy) == 1
    assert policy.on_controller_start_worker_group() == {"zone": "!b", "ray.io/node-id": "!in(b)"}


def test_nodes_that_the_config_names_are_left_if_they_are_avoided(world: World) -> None:
    world.nodes, world.lost = "abc", {"b"}
    policy = world.policy(min_workers=1, placement={"labels": {"ray.io/node-id": "in(a, b)"}})
    assert size_of(policy) == 1
    assert policy.on_controller_start_worker_group() == {"ray.io/node-id": "in(a)"}


def test_resources_that_others_use_are_waited_for_a_while(world: World) -> None:
    policy = world.policy(min_workers=1)
    world.busy = "b"
    assert size_of(policy) is None
    world.now += scaling.PATIENCE_SECONDS
    assert size_of(policy) == 1


def test_a_group_of_fixed_size_waits_for_another_node_and_says_so_once(world: World) -> None:
    policy = world.policy()
    world.lost = {"b"}
    assert [size_of(policy) for _ in range(100)] == [None] * 100
    assert world.told == ["waiting for nodes: 2 workers are needed, and there is room for 1"]
    world.nodes = "abc"
    assert size_of(policy) == 2


def test_the_wait_for_nodes_ends(world: World) -> None:
    policy = world.policy(recovery={"start_seconds": 60.0})
    world.nodes = "a"
    assert size_of(policy) is None
    world.now += 61.0
    with pytest.raises(NoRoomError, match=r"no nodes for 2 workers within 60 s \(cluster.recovery.start_seconds\)"):
        size_of(policy)


def test_workers_that_ran_meanwhile_end_a_wait(world: World) -> None:
    policy = world.policy(recovery={"start_seconds": 60.0})
    world.nodes = "a"
    size_of(policy)
    policy.make_decision_for_running_worker_group(None, None)
    world.now += 61.0
    assert size_of(policy) is None


def test_a_request_to_stop_ends_the_wait_for_nodes(world: World) -> None:
    policy = world.policy()
    world.nodes, world.stopped = "a", True
    with pytest.raises(NoRoomError, match="stopped while it waited"):
        size_of(policy)


def test_nothing_is_decided_while_the_head_does_not_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Node]:
        raise RuntimeError("no head")

    policy = world.policy()
    monkeypatch.setattr(scaling, "alive_nodes", broken)
    assert size_of(policy) is None
    monkeypatch.undo()
