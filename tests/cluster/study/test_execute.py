"""Trials of a study at a time on a cluster."""

from typing import Any

import pytest

from cluster.config.run_config import ClusterConfig, EvaluationWorkersConfig
from cluster.ray_cluster.room import NodeRoom
from cluster.study import execute

NODES = [NodeRoom("a", {"CPU": 8.0}), NodeRoom("b", {"CPU": 4.0})]


@pytest.mark.parametrize(
    ("evaluation", "at_once"),
    [({}, 6), ({"num_workers": 1}, 4), ({"num_workers": 1, "cpus_per_worker": 2}, 3), ({"num_workers": 30}, 1)],
)
def test_trials_leave_room_for_workers_of_concurrent_evaluation(
    monkeypatch: pytest.MonkeyPatch, evaluation: dict[str, Any], at_once: int
) -> None:
    monkeypatch.setattr(execute, "nodes_here", lambda: NODES)
    cluster = ClusterConfig(num_workers=2, evaluation=EvaluationWorkersConfig(**evaluation))
    assert execute.most_at_once([cluster]) == at_once
