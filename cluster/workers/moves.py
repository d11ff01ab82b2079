"""Decision when workers leave a node that the cluster takes back, and when they use nodes that were added.

The workers then save a checkpoint and start again from it at once, so that nothing is trained twice. Runs in the driver.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config.run_config import ClusterConfig
from cluster.workers.mailbox import Beat, Move, Status
from cluster.workers.nodes import Node, Resources, alive_nodes, draining_nodes, held_resources, room_for, unreachable

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Advice:
    """Consequence of the state of the nodes for the workers."""

    # For people.
    warnings: tuple[str, ...] = ()
    # Whether workers should save a checkpoint and continue, because there is no other place for them yet.
    save: bool = False
    # Restart from a checkpoint that is saved now.
    move: Move | None = None


NOTHING = Advice()


class Moves:
    """Looks at the nodes again and again. The functions are those of nodes.py, except in tests."""

    def __init__(
        self,
        config: ClusterConfig,
        nodes: Callable[[], list[Node]] = alive_nodes,
        draining: Callable[[], Mapping[str, int]] = draining_nodes,
        lost: Callable[[Sequence[Node]], set[str]] = unreachable,
        held: Callable[[Any], Mapping[str, Resources]] = held_resources,
    ) -> None:
        self._config = config
        self._nodes, self._draining, self._lost, self._held = nodes, draining, lost, held
        self._looked = 0.0
        self._grown = 0.0  # when it was last considered to grow, or when the group started
        self._attempt = 0
        self._asked = False
        self._warned: set[str] = set()

    def look(self, status: Status, group: Callable[[], Any], now: float) -> Advice:
        """Return what to do now.

        Args:
            status: the workers.
            group: returns the placement group of the workers.
            now: seconds of a monotonic clock.
        """
        if self._config.address is None or now - self._looked < LOOK_SECONDS:
            return NOTHING  # nobody takes back the machine of a session of our own
        self._looked = now
        if status.attempt != self._attempt or status.world_size is None:
            self._attempt, self._asked, self._grown = status.attempt, False, now
        if status.world_size is None:
            return NOTHING
        draining = self._draining()
        taken = {beat.place.node for beat in status.beats.values()} & set(draining)
        if taken:
            return self._leave(taken, draining, status, group)
        may_grow = status.world_size < self._config.num_workers and not self._asked
        if may_grow and now - self._grown >= self._config.recovery.resize_seconds:
            self._grown = now
            return self._grow(status.world_size, draining, group)
        return NOTHING

    def _leave(self, taken: set[str], draining: Mapping[str, int], status: Status, group: Callable[[], Any]) -> Advice:
        """Move away from nodes that are taken back if others can hold enough workers. Else save, and train until the end."""
        texts = {node: drain_text(*_host_and_ranks(node, status.beats), draining[node]) for node in sorted(taken)}
        new = taken - self._warned
        self._warned |= new
        fewest = self._config.min_workers or self._config.num_workers
        if not self._asked and self._room(draining, group) >= fewest:
            self._asked = True
            return Advice(move=Move("preemption", "; ".join(texts.values())))
        if self._asked:
            return NOTHING
        return Advice(tuple(f"{texts[node]}; saving a checkpoint" for node in sorted(new)), save=bool(new))

    def _grow(self, world_size: int, draining: Mapping[str, int], group: Callable[[], Any]) -> Advice:
        room = self._room(draining, group)
        if room <= world_size:
            return NOTHING
        self._asked = True
        return Advice(move=Move("resize", f"the cluster has room for {room} workers, and {world_size} run"))

    def _room(self, draining: Mapping[str, int], group: Callable[[], Any]) -> int:
        """Return how many workers the nodes can hold that stay, at most as many as configured."""
        nodes = [node for node in self._nodes() if node.id not in draining]
        lost = self._lost(nodes)
        room = room_for(self._config, (node for node in nodes if node.id not in lost), self._held(group()))
        return min(self._config.num_workers, room.free)


def drain_text(host: str, ranks: Sequence[int], deadline: int, now: float | None = None) -> str:
    """Return what is about to happen, for people.

    Args:
        host: name of the machine.
        ranks: the ranks on it.
        deadline: milliseconds since 1970; 0 without one.
        now: seconds since 1970; None: the time of the call.
    """
    named = ", ".join(map(str, ranks))
    left = deadline / 1000 - (time.time() if now is None else now)
    when = f"in {max(0.0, left):.0f} s" if deadline else "soon"
    return f"the cluster takes back {host}, with rank{'s' * (len(ranks) > 1)} {named}, {when}"


def _host_and_ranks(node: str, beats: Mapping[int, Beat]) -> tuple[str, list[int]]:
    ranks = sorted(rank for rank, beat in beats.items() if beat.place.node == node)
    return beats[ranks[0]].place.host, ranks
