"""`shoal submit` against a real Ray head on this machine: the log is followed and the exit code comes back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.test_run import finish, shoal
from trainer.synthetic.log import generate
from trainer.synthetic.world import SyntheticConfig

pytestmark = pytest.mark.alone

START_SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory) -> Iterator[str]:
    """A head node with a dashboard, ended by the ids of the processes that it started."""
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    command = [
        str(ray),
        "start",
        "--head",
        "--block",
        "--num-cpus=3",
        f"--port={free_port()}",
        "--include-dashboard=true",
    ]
    # The agent's default port may belong to another Ray session on this machine; without its agent a head takes no jobs.
    command += [
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    # Jobs run `python`: the one of this environment, as on a cluster whose nodes have Shoal's requirements installed.
    path = f"{ray.parent}{os.pathsep}{os.environ['PATH']}"
    head = subprocess.Popen(
        [*command, "--disable-usage-stats"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_AUTH_MODE": "token", "PATH": path},
        start_new_session=True,
    )
    try:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in family:
            if process.is_running():
                process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=3)
        for process in alive:
            process.kill()


def test_a_job_runs_and_its_exit_code_comes_back(dashboard, tmp_path):
    logs = tmp_path / "logs"
    generate(SyntheticConfig(num_users=100, num_items=150, mean_events_per_user=15.0), logs)
    config = tmp_path / "job.toml"
    config.write_text(
        f"""
        [run]
        dir = "{tmp_path / "run"}"
        [logs]
        path = "{logs}/events-*.parquet"
        [tables.item]
        dim = 16
        [train]
        epochs = 2
        batch_size = 25
        [cluster]
        num_workers = 2
        """
    )
    code, out, err = finish(shoal("submit", str(config), "--dashboard", dashboard))
    assert code == 0, out + err
    assert "popularity" in out  # the job's own table, from its log
    metrics = json.loads((tmp_path / "run/evaluation/test/metrics.json").read_text())
    assert metrics["num_users"] == 100

    code, out, err = finish(shoal("submit", str(config), "--dashboard", dashboard, "--set", "train.batch_size=10"))
    assert code == 2, out + err
    assert "train.batch_size: was 25, is 10" in out


def test_no_cluster_is_one_message(tmp_path):
    config = tmp_path / "job.toml"
    config.write_text('[logs]\npath = "x"\n')
    code, _, err = finish(shoal("submit", str(config), "--dashboard", f"http://127.0.0.1:{free_port()}"))
    assert code == 2
    assert "no Ray cluster takes jobs there" in err
    assert "Traceback" not in err
