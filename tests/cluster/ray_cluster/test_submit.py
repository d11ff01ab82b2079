"""The files that a job takes with it to the cluster."""

from pathlib import Path

import pytest

from cluster.config.run_config import check_config, load_config
from cluster.ray_cluster.submit import PACKAGES, _stage


def test_every_path_of_a_job_is_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job runs in a folder of its own, where a relative path would lead nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    values = {
        "run": {"dir": "run"},
        "logs": {
            "path": ["a.parquet", "~/b.parquet", "s3://bucket/c.parquet"],
            "labels": ["click"],
            "history": {"path": "history.parquet"},
            "items": {"path": "items/*.parquet"},
            "users": {"path": ["users.parquet"]},
        },
        "plan": {"calibration": "plan/calibration.json"},
        "split": {"kind": "global_time", "validation_time": 1, "test_time": 2},
    }
    _stage(check_config(values, "test"), tmp_path / "staged")
    assert sorted(path.name for path in (tmp_path / "staged").iterdir()) == sorted([*PACKAGES, "config.json"])
    staged = load_config(tmp_path / "staged/config.json")
    assert (staged.run.dir, staged.run.dataset) == (str(tmp_path / "run"), str(tmp_path / "run/dataset"))
    assert staged.plan.calibration == str(tmp_path / "plan/calibration.json")
    assert staged.cluster.address == "auto"
    logs = staged.logs
    assert logs.path == [str(tmp_path / "a.parquet"), str(tmp_path / "home/b.parquet"), "s3://bucket/c.parquet"]
    assert logs.history is not None
    assert logs.items is not None
    assert logs.users is not None
    paths = (logs.history.path, logs.items.path, logs.users.path)
    assert paths == tuple([str(tmp_path / name)] for name in ("history.parquet", "items/*.parquet", "users.parquet"))


def test_only_the_config_travels_to_a_cluster_with_shoal_installed(tmp_path: Path) -> None:
    _stage(check_config({"logs": {"path": "a.parquet"}}, "test"), tmp_path / "staged", ())
    assert [path.name for path in (tmp_path / "staged").iterdir()] == ["config.json"]
