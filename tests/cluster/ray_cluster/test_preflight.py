"""The checks before a job: what does not fit is named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_config import Config, check_config
from cluster.driver.existing_run import describe_existing
from cluster.ray_cluster import preflight
from cluster.ray_cluster.preflight import (
    Node,
    all_here,
    evaluation_problem,
    missing_files,
    nodes_of,
    resource_problem,
    uses_objects,
    workers_on,
)
from tests.support.object_store import memory_store


def cluster(**values: Any) -> Any:
    return check_config({"logs": {"path": "a.parquet"}, "cluster": values}, "test").cluster


NODES = [Node("10.0.0.1", {"CPU": 8.0}), Node("10.0.0.2", {"CPU": 3.0, "GPU": 1.0})]


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"num_workers": 11}, True),
        ({"num_workers": 12}, False),
        ({"num_workers": 12, "min_workers": 11}, True),
        ({"num_workers": 5, "cpus_per_worker": 2}, True),  # four and one
        ({"num_workers": 3, "cpus_per_worker": 4}, False),  # 11 CPUs in all, but not four of them on the second node
        ({"num_workers": 1, "gpus_per_worker": 1}, True),
        ({"num_workers": 2, "gpus_per_worker": 1}, False),
        ({"num_workers": 2, "gpus_per_worker": 1, "autoscaling": True}, True),
    ],
)
def test_workers_must_fit_on_the_nodes_one_by_one(values: dict[str, Any], fits: bool) -> None:
    assert (resource_problem(cluster(**values), NODES) is None) == fits


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"num_workers": 10}, True),
        ({"num_workers": 11}, False),
        ({"num_workers": 11, "min_workers": 1}, False),  # they would grow into the room of the others
        ({"num_workers": 11, "autoscaling": True}, True),
        ({"num_workers": 2, "cpus_per_worker": 4}, True),  # on the first node, and three CPUs on the second
        ({"num_workers": 1, "gpus_per_worker": 1}, True),
    ],
)
def test_workers_of_evaluation_must_fit_in_addition(values: dict[str, Any], fits: bool) -> None:
    assert (evaluation_problem(cluster(**values, evaluation={"num_workers": 1}), NODES) is None) == fits
    assert evaluation_problem(cluster(**values), NODES) is None


def test_the_message_names_what_is_missing() -> None:
    problem = resource_problem(cluster(num_workers=4, gpus_per_worker=1), NODES)
    assert problem is not None
    assert "4 workers with 1 CPU and 1 GPU each do not fit" in problem
    assert "10.0.0.2: 3 CPUs and 1 GPUs" in problem
    assert "room for 1, so 3 more would wait for ever" in problem


def test_a_worker_without_gpu_counts_cpus_alone() -> None:
    assert workers_on({"CPU": 5.0}, {"CPU": 2, "GPU": 0}) == 2


def test_logs_and_run_folder_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    values = {
        "run": {"dir": str(tmp_path / "run")},
        "logs": {"path": [f"{tmp_path}/*.parquet", f"{tmp_path}/b.csv"]},
    }
    config = check_config(values, "test")
    assert missing_files(config, "run") == [f"logs.path = {tmp_path}/b.csv: no such file"]
    assert missing_files(config, "evaluate") == []
    assert not uses_objects(config)


def on_storage(**run: str) -> Config:
    logs = {"path": ["s3://bucket/logs/*.parquet"]}
    return check_config({"run": {"dir": "s3://bucket/runs/demo", **run}, "logs": logs}, "test")


def test_logs_and_folders_on_an_object_storage_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_store(monkeypatch) as store:
        config = on_storage(dataset="s3://bucket/dataset")
        assert uses_objects(config)
        (problem,) = missing_files(config, "run")
        assert problem.startswith("logs.path 's3://bucket/logs/*.parquet': no such file")
        assert missing_files(config, "evaluate") == []
        store.objects["bucket/logs/a.parquet"] = (b"", 0.0)
        assert missing_files(config, "run") == []
        assert store.names() == ["bucket/logs/a.parquet"]  # nothing is left of the look
        store.put = refuse  # type: ignore[method-assign]
        problems = missing_files(config, "evaluate")
        assert [problem.split(":")[0] for problem in problems] == ["run.dir s3", "run.dataset s3"]
        assert "check the URI and the credentials in the environment" in problems[0]


def refuse(key: str, data: bytes) -> None:
    raise OSError("AWS Error ACCESS_DENIED during PutObject operation: Access Denied.")


def test_a_storage_that_only_the_cluster_may_use_hides_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The submitting machine cannot see whether the run exists. The command on the cluster looks again."""
    with memory_store(monkeypatch) as store:
        store.failures = [OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body.")]
        assert describe_existing(on_storage(), "run") is None


def test_another_machine_is_not_here() -> None:
    assert all_here([Node("127.0.0.1", {})])
    assert not all_here([Node("127.0.0.1", {}), Node("192.0.2.77", {})])
    assert not all_here([])


def test_the_first_node_of_a_cluster_that_was_just_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SimpleNamespace(node_ip="10.0.0.1", resources_total={"CPU": 3.0}, state="ALIVE")
    dead = SimpleNamespace(node_ip="10.0.0.9", resources_total={"CPU": 3.0}, state="DEAD")
    answers = iter([[], [dead], [dead, head]])
    monkeypatch.setattr(preflight, "list_nodes", lambda **_: next(answers))
    monkeypatch.setattr(preflight, "POLL_SECONDS", 0.0)
    assert nodes_of("http://head:8265") == [Node("10.0.0.1", {"CPU": 3.0})]


def test_a_cluster_without_nodes_is_waited_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "list_nodes", lambda **_: [])
    monkeypatch.setattr(preflight, "FIRST_NODE_SECONDS", 0.0)
    monkeypatch.setattr(preflight, "POLL_SECONDS", 0.0)
    assert nodes_of("http://head:8265") == []
