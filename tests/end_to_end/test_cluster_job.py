"""A run on a cluster by commands alone: submit, follow, kill a worker, stop, submit again, finish, evaluate as another job."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.commands import finish, refused, shoal, succeed
from tests.end_to_end.ray_head import Head
from tests.end_to_end.watched import WAIT_SECONDS, wait_for

STEPS_PER_EPOCH = 30


def newest_step(run: Path) -> int:
    steps = [int(path.parent.name.removeprefix("step_")) for path in run.glob("checkpoints/step_*/manifest.json")]
    return max(steps, default=0)


def rank_log(run: Path, rank: int) -> str:
    path = run / f"logs/rank-{rank}.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.faults
@pytest.mark.timeout(2400)
def test_a_run_lives_on_a_cluster(config: Path, head: Head, tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit = ["submit", str(config), "--dashboard", head.dashboard, "--set", f"run.dir={run}"]

    first = shoal(*submit, "--set", "train.epochs=100000")
    wait_for("the first checkpoint", lambda: newest_step(run) > 0, first)
    (listed,) = succeed("status", str(tmp_path))["runs"]
    assert (listed["run"], listed["stage"], listed["workers"]) == ("run", "train running", 2)

    pid = re.findall(r"worker starts as process (\d+)", rank_log(run, 1))[-1]
    os.kill(int(pid), signal.SIGKILL)
    wait_for("a second attempt of rank 1", lambda: "attempt 2" in rank_log(run, 1), first)
    at_restart = newest_step(run)
    wait_for("a checkpoint after the restart", lambda: newest_step(run) > at_restart, first)
    assert succeed("status", str(tmp_path))["runs"][0]["restarts"] == 1

    stopped = succeed("stop", str(run))
    assert stopped["stages"]["train"] == "stopped"
    code, said, err = finish(first, WAIT_SECONDS)
    assert code == 1, said + err
    assert "resumed from" in said
    step = newest_step(run)
    assert step >= at_restart

    few = ["--set", f"train.epochs={step // STEPS_PER_EPOCH + 2}"]
    code, said, err = finish(shoal(*submit, *few), WAIT_SECONDS)
    assert code == 0, said + err
    assert f"resuming from checkpoint step_{step:09d}" in said
    assert "popularity" in said
    assert "is finished" in refused(*submit, *few)
    code, shown, err = finish(shoal("logs", str(run), "--rank", "1", "--follow", "--tail", "2"))
    assert (code, "job 2 is done" in shown) == (0, True), shown + err

    evaluation = [*submit, *few, "--command", "evaluate", "--logs", later_logs(config, tmp_path)]
    code, said, err = finish(shoal(*evaluation), WAIT_SECONDS)
    assert code == 0, said + err
    (metrics,) = (run / "evaluation").glob("logs-later-*/test/metrics.json")
    assert json.loads(metrics.read_text())["protocol"]["num_events"] == 300


def later_logs(config: Path, folder: Path) -> str:
    """Write events after those of the run."""
    logs = pq.read_table(sorted((config.parent / "events").glob("events-*.parquet"))[0])
    times = logs.column("time")
    span = pc.max(times).as_py() - pc.min(times).as_py() + 1
    later = logs.set_column(logs.column_names.index("time"), "time", pc.add(times, pa.scalar(span, times.type)))
    pq.write_table(later.slice(0, 300), folder / "later.parquet")
    return str(folder / "later.parquet")


def test_a_job_that_cannot_run_is_refused(config: Path, head: Head, tmp_path: Path) -> None:
    command = ["submit", str(config), "--dashboard", head.dashboard, "--set", f"run.dir={tmp_path / 'run'}"]
    message = refused(*command, "--set", "cluster.num_workers=7", "--set", "logs.path=/nowhere/*.parquet")
    assert "7 workers with 1 CPU each do not fit" in message
    assert "room for 3, so 4 more would wait for ever" in message
    message = refused(*command, "--set", "logs.path=/nowhere/*.parquet")
    assert "logs.path = /nowhere/*.parquet: no such file" in message
    assert not (tmp_path / "run").exists()


LOOK = """
import sys
from pathlib import Path
from cluster.config.run_config import load_config
from cluster.ray_cluster.submit import PACKAGES, _stage, connect_to, probe

config, dashboard, folder = sys.argv[1:]
staged = Path(folder) / "staged"
_stage(load_config(Path(config), [f"run.dir={folder}/run", "logs.path=/nowhere.csv"]), staged, PACKAGES)
print("\\n".join(probe(connect_to(dashboard), dashboard, staged, "run")))
"""


def test_a_short_job_looks_from_each_node(config: Path, head: Head, tmp_path: Path) -> None:
    """In a process of its own, because Ray reads the choice of a token once, when it is imported."""
    finished = subprocess.run(
        [sys.executable, "-c", LOOK, str(config), head.dashboard, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        timeout=WAIT_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr
    problem = finished.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"node [\d.]+: logs\.path = /nowhere\.csv: no such file", problem), finished.stdout
