"""Decisions to leave nodes that are taken back, and to use nodes that were added."""

from typing import Any

from cluster.config.run_config import ClusterConfig
from cluster.workers.mailbox import Beat, Move, Place, Status
from cluster.workers.moves import NOTHING, Advice, Moves, drain_text
from cluster.workers.nodes import Node


class Cluster:
    """Nodes of one CPU each, and workers that hold some of them."""

    def __init__(self, nodes: str, workers: str, **settings: Any) -> None:
        self.nodes, self.workers, self.attempt = nodes, workers, 1
        self.draining: dict[str, int] = {}
        self.lost: set[str] = set()
        recovery = {"resize_seconds": 60.0}
        config = {"address": "auto", "num_workers": 2, "min_workers": 1, "recovery": recovery, **settings}
        self.moves = Moves(
            ClusterConfig.model_validate(config),
            nodes=self._nodes,
            draining=lambda: self.draining,
            lost=lambda nodes: self.lost,
            held=lambda group: {node: {"CPU": 1.0} for node in self.workers},
        )

    def look(self, now: float) -> Advice:
        beats = {rank: Beat(Place(f"host-{node}", node, 1, 0.0)) for rank, node in enumerate(self.workers)}
        return self.moves.look(Status([], 0, len(beats) or None, beats, self.attempt), lambda: None, now)

    def _nodes(self) -> list[Node]:
        return [Node(node, "", 0, {"CPU": 1.0}, {"CPU": 0.0 if node in self.workers else 1.0}) for node in self.nodes]


def test_workers_leave_a_node_that_is_taken_back_at_once_if_others_can_hold_enough() -> None:
    cluster = Cluster("ab", "ab")
    assert cluster.look(1.0) == NOTHING
    cluster.draining = {"b": 0}
    assert cluster.look(2.0) == Advice(move=Move("preemption", "the cluster takes back host-b, with rank 1, soon"))
    assert cluster.look(3.0) == NOTHING  # it was asked for
    cluster.workers, cluster.attempt = "a", 2
    assert cluster.look(4.0) == NOTHING
    assert cluster.look(99.0) == NOTHING  # the other node is alive until its end, and is no place to grow


def test_workers_save_and_go_on_until_there_is_another_place() -> None:
    cluster = Cluster("ab", "ab", min_workers=None)
    cluster.draining = {"b": 0}
    text = "the cluster takes back host-b, with rank 1, soon"
    assert cluster.look(1.0) == Advice((f"{text}; saving a checkpoint",), save=True)
    assert cluster.look(2.0) == NOTHING
    cluster.nodes = "abc"
    assert cluster.look(3.0) == Advice(move=Move("preemption", text))


def test_another_node_that_is_taken_back_is_nothing_to_the_workers() -> None:
    cluster = Cluster("ab", "a", num_workers=1)
    cluster.draining = {"b": 0}
    assert cluster.look(1.0) == NOTHING


def test_a_smaller_group_grows_when_a_node_is_added() -> None:
    cluster = Cluster("a", "a")
    assert [cluster.look(now) for now in (1.0, 62.0)] == [NOTHING, NOTHING]
    cluster.nodes = "ab"
    assert cluster.look(63.0) == NOTHING  # the next look is due after another minute
    cluster.lost = {"b"}
    assert cluster.look(123.0) == NOTHING
    cluster.lost = set()
    assert cluster.look(184.0) == Advice(move=Move("resize", "the cluster has room for 2 workers, and 1 run"))
    assert cluster.look(245.0) == NOTHING  # asked for: an evaluation may end first


def test_a_group_that_has_just_started_does_not_grow() -> None:
    cluster = Cluster("ab", "a")
    cluster.look(1.0)
    cluster.attempt = 2
    assert cluster.look(61.5) == NOTHING
    assert cluster.look(122.0).move is not None


def test_a_session_on_this_machine_is_not_taken_back() -> None:
    cluster = Cluster("ab", "ab", address=None)
    cluster.draining = {"b": 0}
    assert cluster.look(1.0) == NOTHING


def test_the_text_names_machine_ranks_and_time_left() -> None:
    assert drain_text("a", [1], 30_000, now=10.0) == "the cluster takes back a, with rank 1, in 20 s"
    assert drain_text("a", [1, 3], 0) == "the cluster takes back a, with ranks 1, 3, soon"
