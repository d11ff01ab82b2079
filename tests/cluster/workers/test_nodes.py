"""Room for workers on nodes, and nodes that do not answer."""

import socket
from typing import Any

import pytest

from cluster.config.run_config import ClusterConfig
from cluster.workers import nodes
from cluster.workers.nodes import Node, Room, held_resources, room_for, unreachable


def node(name: str, free: float, total: float = 4.0, port: int = 0) -> Node:
    return Node(name, "127.0.0.1", port, {"CPU": total, "memory": 1e9}, {"CPU": free})


def test_workers_do_not_span_nodes() -> None:
    three_free = [node("a", 3.0), node("b", 3.0)]
    assert room_for(ClusterConfig(cpus_per_worker=2), three_free, {}) == Room(total=4, free=2)


def test_the_resources_of_our_own_workers_count_as_free_where_they_are() -> None:
    busy = [node("a", 0.0), node("b", 0.0)]
    assert room_for(ClusterConfig(cpus_per_worker=2), busy, {}) == Room(total=4, free=0)
    assert room_for(ClusterConfig(cpus_per_worker=2), busy, {"a": {"CPU": 2.0}, "lost": {"CPU": 2.0}}) == Room(
        total=4, free=1
    )


def test_a_node_without_a_resource_holds_no_worker_that_needs_it() -> None:
    assert room_for(ClusterConfig(gpus_per_worker=1), [node("a", 4.0)], {}) == Room(total=0, free=0)


def test_a_node_without_the_labels_is_no_place_for_workers() -> None:
    labelled = Node("a", "127.0.0.1", 0, {"CPU": 4.0}, {"CPU": 2.0}, {"group": "train"})
    config = ClusterConfig.model_validate({"address": "auto", "placement": {"labels": {"group": "train"}}})
    assert room_for(config, [labelled, node("b", 4.0)], {}) == Room(total=4, free=2)
    spread = config.model_copy(update={"placement": config.placement.model_copy(update={"strategy": "strict_spread"})})
    assert room_for(spread, [labelled, node("b", 4.0)], {"a": {"CPU": 2.0}}) == Room(total=1, free=1)


def test_a_node_that_refuses_connections_is_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        alive = node("alive", 1.0, port=server.getsockname()[1])
        lost = node("lost", 1.0, port=unused.getsockname()[1])
        assert unreachable([alive, lost]) == {"lost"}
    assert unreachable([]) == set()


@pytest.mark.parametrize(("state", "held"), [("CREATED", {"a": {"CPU": 4.0}, "b": {"CPU": 2.0}}), ("REMOVED", {})])
def test_a_group_holds_its_bundles_until_it_is_removed(
    monkeypatch: pytest.MonkeyPatch, state: str, held: dict[str, Any]
) -> None:
    bundles = {0: {"CPU": 2.0}, 1: {"CPU": 2.0}, 2: {"CPU": 2.0}}
    table = {"state": state, "bundles_to_node_id": {0: "a", 1: "a", 2: "b"}, "bundles": bundles}
    monkeypatch.setattr(nodes, "placement_group_table", lambda group: table)
    assert held_resources(object()) == held
    assert held_resources(None) == {}
