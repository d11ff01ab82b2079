"""The checks before a job: what does not fit is named."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.config.run_config import Config, check_config
from cluster.driver.existing_run import describe_existing
from cluster.ray_cluster import preflight
from cluster.ray_cluster.preflight import (
    all_here,
    missing_files,
    nodes_of,
    uses_objects,
)
from cluster.ray_cluster.room import NodeRoom
from tests.support.object_store import memory_store


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
    assert all_here([NodeRoom("127.0.0.1", {})])
    assert not all_here([NodeRoom("127.0.0.1", {}), NodeRoom("192.0.2.77", {})])
    assert not all_here([])


def test_the_first_node_of_a_cluster_that_was_just_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SimpleNamespace(node_ip="10.0.0.1", resources_total={"CPU": 3.0}, state="ALIVE", labels={"zone": "a"})
    dead = SimpleNamespace(node_ip="10.0.0.9", resources_total={"CPU": 3.0}, state="DEAD")
    answers = iter([[], [dead], [dead, head]])
    monkeypatch.setattr(preflight, "list_nodes", lambda **_: next(answers))
    monkeypatch.setattr(preflight, "POLL_SECONDS", 0.0)
    assert nodes_of("http://head:8265") == [NodeRoom("10.0.0.1", {"CPU": 3.0}, {"zone": "a"})]


def test_a_cluster_without_nodes_is_waited_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "list_nodes", lambda **_: [])
    monkeypatch.setattr(preflight, "FIRST_NODE_SECONDS", 0.0)
    monkeypatch.setattr(preflight, "POLL_SECONDS", 0.0)
    assert nodes_of("http://head:8265") == []
