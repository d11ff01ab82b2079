"""What a job takes with it to the cluster, and what comes back while it is followed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.config.run_config import check_config, load_config
from cluster.ray_cluster import submit
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


class FakeClient:
    """A job with a log that grows from answer to answer; each status comes with the log of that moment."""

    def __init__(self, status: JobStatus, exit_code: int | None) -> None:
        self._moments = [(JobStatus.RUNNING, "first\n"), (JobStatus.RUNNING, "first\nsec"), (status, "first\nsec")]
        self._last = "first\nsecond\nlast\n"  # written between the last look at the log and the end
        self._exit_code, self._asked = exit_code, 0

    def get_job_status(self, job_id: str) -> JobStatus:
        self._asked += 1
        return self._moments[min(self._asked, len(self._moments)) - 1][0]

    def get_job_logs(self, job_id: str) -> str:
        if self._asked >= len(self._moments):
            return self._last
        return self._moments[max(0, self._asked - 1)][1]

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        return SimpleNamespace(driver_exit_code=self._exit_code)


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 1),
        (JobStatus.SUCCEEDED, None, 0),
    ],
)
def test_a_followed_job_gives_its_whole_log_once_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, status: JobStatus, exit_code: int | None, expected: int
) -> None:
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)
    shown: list[str] = []
    client: Any = FakeClient(status, exit_code)
    assert submit._follow(client, "shoal-1", shown.append) == expected
    assert "".join(shown) == "first\nsecond\nlast\n"
