"""Nodes of the cluster: which of them can hold workers now.

Ray counts a lost node as alive for up to a minute, and one that is taken back until it is gone. Workers that are asked for there
never start. So nodes that are taken back, or that do not answer, do not count here.
"""

import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private import state
from ray.util import placement_group_table

from cluster.config.run_config import ClusterConfig
from cluster.ray_cluster.room import Labels, NodeRoom, Resources, room_on

ANSWER_SECONDS = 2.0  # for a node to accept a connection
MAX_CONNECTIONS = 64  # at a time


@dataclass(frozen=True)
class Node:
    """A node that Ray counts as alive."""

    # Ray's id.
    id: str
    # Where its raylet, which starts workers, accepts connections.
    address: str
    port: int
    # All its resources, and those that nobody has reserved.
    total: Resources
    free: Resources
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True)
class Room:
    """Numbers of workers that nodes can hold."""

    # If nobody else used them.
    total: int
    # Now, in place of the workers that run.
    free: int


def alive_nodes() -> list[Node]:
    """Return the nodes that Ray counts as alive."""
    free: dict[str, dict[str, float]] = state.available_resources_per_node()
    return [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["NodeManagerPort"],
            node["Resources"],
            free.get(node["NodeID"], {}),
            node.get("Labels") or {},
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def draining_nodes() -> dict[str, int]:
    """Return the deadline of each node that is drained, in milliseconds since 1970, 0 without one; by Ray's id of the node."""
    nodes: dict[str, int] = state.state.get_draining_nodes()
    return nodes


def unreachable(nodes: Iterable[Node]) -> set[str]:
    """Return the ids of nodes that accept no connection. The kernel accepts those of a busy process, so these are lost."""
    nodes = list(nodes)
    with ThreadPoolExecutor(max(1, min(MAX_CONNECTIONS, len(nodes)))) as pool:
        return {node.id for node, answers in zip(nodes, pool.map(_answers, nodes), strict=True) if not answers}


def _answers(node: Node) -> bool:
    with suppress(OSError), socket.create_connection((node.address, node.port), ANSWER_SECONDS):
        return True
    return False


def held_resources(group: Any) -> dict[str, dict[str, float]]:
    """Return the resources that a placement group holds, by node. group: None: nothing is held."""
    if group is None:
        return {}
    table: dict[str, Any] = placement_group_table(group)
    if table.get("state") not in ("CREATED", "RESCHEDULING"):
        return {}
    held: dict[str, dict[str, float]] = {}
    for index, node in table["bundles_to_node_id"].items():
        of_node = held.setdefault(node, {})
        for name, amount in table["bundles"][index].items():
            of_node[name] = of_node.get(name, 0.0) + amount
    return held


def room_for(config: ClusterConfig, nodes: Iterable[Node], held: Mapping[str, Resources]) -> Room:
    """Return how many workers nodes can hold.

    Args:
        config: the workers, and their placement.
        nodes: nodes that can start workers.
        held: by node, the resources of the workers that run, or that have a placement group.
    """
    nodes = list(nodes)
    total = room_on((NodeRoom(node.address, node.total, node.labels) for node in nodes), config)
    with_own = (NodeRoom(node.address, _sum_of(node.free, held.get(node.id, {})), node.labels) for node in nodes)
    return Room(total, room_on(with_own, config))


def _sum_of(some: Resources, others: Resources) -> dict[str, float]:
    return {name: some.get(name, 0.0) + others.get(name, 0.0) for name in {*some, *others}}
