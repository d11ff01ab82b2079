"""A Ray cluster of this machine alone, that takes jobs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Head:
    """Where a head node is reached: by drivers (host:port), and by those who submit jobs (a URL)."""

    address: str
    dashboard: str


@contextmanager
def ray_head() -> Iterator[Head]:
    """Yield a head node, with a temporary folder of its own; it is ended by the ids of the processes that it started."""
    port, gcs_port = free_port(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="shoal-head-"))
    ray = Path(sys.executable).with_name("ray")
    command = [
        str(ray),
        "start",
        "--head",
        "--block",
        "--num-cpus=3",
        f"--port={gcs_port}",
        f"--temp-dir={folder}",
        "--include-dashboard=true",
    ]
    # The agent's default port may belong to another Ray session on this machine; without its agent a head takes no jobs.
    command += [
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    # Jobs run `python`: the one of this environment, as on a cluster with Shoal's requirements installed on its nodes.
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
        yield Head(f"127.0.0.1:{gcs_port}", f"http://127.0.0.1:{port}")
    finally:
        family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        for process in family:
            if process.is_running():
                process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=3)
        for process in alive:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
