"""Size of a group of workers that is about to start: as many as nodes can hold that are alive and not taken back.

Ray Train's own policy asks for workers on all nodes that Ray counts as alive. On one that is lost or taken back they never start,
and each request waits for its time-out. Runs in the process of Ray Train's controller.
"""

import time
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy

from cluster.config.run_config import ClusterConfig
from cluster.ray_cluster.room import matches
from cluster.workers.nodes import Node, Room, alive_nodes, draining_nodes, held_resources, room_for, unreachable

LOOK_SECONDS = 0.25
# For resources that others use at the moment, such as those of a group that has just ended.
PATIENCE_SECONDS = 15.0
SILENT_SECONDS = 5.0  # before people read that the run waits
NODE_ID = "ray.io/node-id"  # the label of each node


class NoRoomError(RuntimeError):
    """No nodes for the workers came within the time that is allowed, or the run was asked to stop meanwhile."""


class GroupSizePolicy(ScalingPolicy):
    """Scaling policy of Ray Train that decides only when no workers run. The driver decides when running ones restart."""

    def __init__(self, scaling_config: ScalingConfig, config: ClusterConfig, mailbox: Any) -> None:
        super().__init__(scaling_config)
        self._config = config
        self._mailbox = mailbox
        self._since: float | None = None  # when the present wait for nodes began
        self._has_told = False
        self._selector: dict[str, str] | None = None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Return the size of the group to start, or wait. Raises NoRoomError after cluster.recovery.start_seconds."""
        self._maybe_send_resource_request()
        now = time.monotonic()
        if self._since is None:
            self._since, self._has_told = now, False
        room = self._room()
        size = self._size(room, now - self._since)
        if size is not None:
            return ResizeDecision(size, self.scaling_config._resources_per_worker_not_none)
        self._wait(room, now - self._since)
        return NoopDecision()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Leave workers that run alone."""
        self._maybe_send_resource_request()
        self._since = None
        return NoopDecision()

    def on_controller_start_worker_group(self, **group: Any) -> dict[str, str] | None:
        """Return labels that keep workers away from nodes that are lost or taken back, which Ray may still count as alive."""
        return self._selector

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask an autoscaler for nodes. A session on this machine has none, and saves the process."""
        if self._config.address is not None:
            super().after_controller_start(train_run_context)

    def _maybe_send_resource_request(self) -> None:
        if self._coordinator_client is not None:
            super()._maybe_send_resource_request()

    def _get_num_workers_for_resource_request(self) -> int:
        return self._config.num_workers

    def _room(self) -> Room:
        """Return the room on nodes that are alive and stay, and note the others."""
        group = ray.get(self._mailbox.reserved.remote())
        try:
            nodes, draining, held = alive_nodes(), draining_nodes(), held_resources(group)
        except Exception:  # noqa: BLE001 - Ray's head, which knows the nodes, may be busy or starting again
            return Room(0, 0)
        avoided = {node.id for node in nodes if node.id in draining} | unreachable(nodes)
        staying = [node for node in nodes if node.id not in avoided]
        self._selector = self._selector_of(sorted(avoided), staying)
        return room_for(self._config, staying, held)

    def _selector_of(self, avoided: list[str], staying: list[Node]) -> dict[str, str] | None:
        """Return the labels of nodes for workers, without nodes that are to be avoided; None if those of the config are enough."""
        if not avoided:
            return None
        labels = dict(self._config.placed.labels)
        if NODE_ID not in labels:
            return {**labels, NODE_ID: f"!in({', '.join(avoided)})"}
        chosen = [node.id for node in staying if matches({NODE_ID: node.id}, {NODE_ID: labels[NODE_ID]})]
        return {**labels, NODE_ID: f"in({', '.join(chosen)})"} if chosen else None

    def _size(self, room: Room, waited: float) -> int | None:
        """Return how many workers to start, or None to wait."""
        most = self._config.num_workers
        fewest = self._config.min_workers or most
        free = min(most, room.free)
        if free < fewest or (free < min(most, room.total) and waited < PATIENCE_SECONDS):
            return None
        return free

    def _wait(self, room: Room, waited: float) -> None:
        """Let some time pass, and tell people once that the run waits."""
        fewest = self._config.min_workers or self._config.num_workers
        limit = self._config.recovery.start_seconds
        if ray.get(self._mailbox.is_stopped.remote()):
            raise NoRoomError("stopped while it waited for nodes that can hold the workers")
        if waited > limit:
            raise NoRoomError(
                f"no nodes for {fewest} workers within {limit:,.0f} s (cluster.recovery.start_seconds): nodes that are alive and "
                f"not taken back can hold {room.total}, and {room.free} besides what others use"
            )
        if waited > SILENT_SECONDS and not self._has_told:
            self._has_told = True
            text = f"waiting for nodes: {fewest} workers are needed, and there is room for {room.free}"
            ray.get(self._mailbox.push.remote({"kind": "warning", "text": text}))
        time.sleep(LOOK_SECONDS)
