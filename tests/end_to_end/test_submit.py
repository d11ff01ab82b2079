"""`shoal submit` and `cluster.address` against a real Ray head on this machine, which asks for a token."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.commands import DEADLINE, Submitted, finish, refused, shoal, succeed
from tests.end_to_end.ray_head import Head, free_port


def test_a_job_runs_and_its_exit_code_comes_back(submitted: Submitted) -> None:
    assert "popularity" in submitted.said  # the job's own table, from its log
    metrics = json.loads((submitted.run_dir / "evaluation/test/metrics.json").read_text())
    assert metrics["num_users"] == 240
    assert "train.batch_size: was 8, is 10" in submitted.again


def test_a_job_outlives_the_command_that_follows_it(config: Path, head: Head, tmp_path: Path) -> None:
    """Its id is shown first, and the commands that are named follow and stop it."""
    settings = ["--set", f"run.dir={tmp_path / 'run'}", "--set", "train.epochs=100000"]
    process = shoal("submit", str(config), "--dashboard", head.dashboard, *settings)
    assert process.stdout is not None
    first = process.stdout.readline()
    job = re.fullmatch(r"submitted job (\S+)\n", first)
    assert job, (first, process.communicate())
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert f"job {job[1]} keeps running" in err
    assert "run the same command again" not in err
    commands = dict(re.findall(r"^ *(follow it|its state|stop it): +(.*)$", err, re.M))
    assert commands["its state"] == f"shoal status {tmp_path / 'run'}"
    deadline, log = time.monotonic() + DEADLINE, ""
    while job[1] not in log:  # Ray's first line names the job, once the job's own process has begun
        assert time.monotonic() < deadline, log
        log = run_line(commands["follow it"].replace("--follow ", ""))
    assert "stopped" in run_line(commands["stop it"])


def run_line(command: str) -> str:
    """Return the output of a shell command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=DEADLINE, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def test_a_dashboard_that_never_answers_is_one_message(tmp_path: Path) -> None:
    config = tmp_path / "job.toml"
    config.write_text('[logs]\npath = "x"\n')
    with socket.create_server(("127.0.0.1", 0)) as server:
        message = refused("submit", str(config), "--dashboard", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert "no Ray cluster takes jobs there (no answer within 5 s)" in message


def test_a_command_joins_a_cluster_that_asks_for_a_token(config: Path, head: Head, tmp_path: Path) -> None:
    settings = ["--set", f"run.dir={tmp_path / 'run'}", "--set", f"cluster.address={head.address}"]
    assert succeed("prepare", str(config), *settings)["counts"]["num_users"] == 240


@pytest.mark.parametrize(
    ("environment", "cause"),
    [
        ({"HOME": "/nowhere"}, "the cluster asks for a token, and none is sent"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "the cluster refuses the token that is sent"),
        ({"HOME": "/nowhere", "RAY_AUTH_MODE": "token"}, "there is no token to send"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "there is no token to send"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_one_message(
    config: Path,
    head: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    cause: str,
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    settings = ["--set", f"run.dir={tmp_path / 'run'}", "--set", f"cluster.address={head.address}"]
    started = time.monotonic()
    message = refused("prepare", str(config), *settings, environment=environment)
    assert time.monotonic() - started < 20.0  # ten, and the start of the process
    assert cause in message
    assert "copy ~/.ray/auth_token" in message
    assert message.count("\n") == 1


def test_no_cluster_is_one_message(tmp_path):
    config = tmp_path / "job.toml"
    config.write_text('[logs]\npath = "x"\n')
    message = refused("submit", str(config), "--dashboard", f"http://127.0.0.1:{free_port()}")
    assert "no Ray cluster takes jobs there" in message


def test_an_evaluation_on_later_logs_is_submitted(submitted: Submitted, head: Head, tmp_path: Path) -> None:
    """The job prepares logs with other columns by the run's vocabularies, and writes their own evaluation."""
    logs = pq.read_table(sorted((submitted.run_dir.parent / "events").glob("events-*.parquet"))[0])
    times = logs.column("time")
    span = pc.max(times).as_py() - pc.min(times).as_py() + 1
    later = pa.table({"who": logs.column("user_id"), "item_id": logs.column("item_id"), "time": pc.add(times, span)})
    pq.write_table(later.slice(0, 300), tmp_path / "later.parquet")
    command = ["submit", str(submitted.run_dir / "config.json"), "--dashboard", head.dashboard, "--command", "evaluate"]
    code, said, err = finish(shoal(*command, "--logs", str(tmp_path / "later.parquet"), "--set", "logs.user=who"))
    assert code == 0, said + err
    (metrics,) = (submitted.run_dir / "evaluation").glob("logs-later-*/test/metrics.json")
    protocol = json.loads(metrics.read_text())["protocol"]
    assert protocol["num_events"] == 300
    assert "later.parquet" in protocol["logs"]
