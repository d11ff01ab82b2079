"""Ray clusters on this machine: a head node that takes jobs, and further nodes. They end with the process that started them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 90.0
KEEPERS: list[subprocess.Popen[bytes]] = []  # referred to, so that their pipes stay open until this process ends


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
def ray_head(
    num_cpus: int = 3, environment: Mapping[str, str] | None = None, labels: str | None = None
) -> Iterator[Head]:
    """Yield a head node, with a temporary folder of its own; it is ended by the ids of the processes that it started.

    Args:
        num_cpus: the CPUs that it offers.
        environment: variables of its workers. A worker has the environment of its node, not that of its driver.
        labels: its labels, such as "group=train".
    """
    port, gcs_port = free_port(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="shoal-head-"))
    ray = Path(sys.executable).with_name("ray")
    command = [
        str(ray),
        "start",
        "--head",
        "--block",
        f"--num-cpus={num_cpus}",
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
    command += [] if labels is None else [f"--labels={labels}"]
    # Jobs run `python`: the one of this environment, as on a cluster with Shoal's requirements installed on its nodes.
    path = f"{ray.parent}{os.pathsep}{os.environ['PATH']}"
    head = subprocess.Popen(
        [*command, "--disable-usage-stats"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_AUTH_MODE": "token", "PATH": path, **(environment or {})},
        start_new_session=True,
    )
    keeper = end_with_this_process(head.pid, folder)
    try:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield Head(f"127.0.0.1:{gcs_port}", f"http://127.0.0.1:{port}")
    finally:
        end_family(head, seconds=3.0)
        keeper.communicate()  # closes its pipe: it has only the folder left to delete


def add_node(
    head: Head, num_cpus: int = 1, environment: Mapping[str, str] | None = None, labels: str | None = None
) -> subprocess.Popen[bytes]:
    """Start another node of the head's cluster on this machine. `environment` holds variables of its workers."""
    ray = Path(sys.executable).with_name("ray")
    ports = [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
    labelled = [] if labels is None else [f"--labels={labels}"]
    node = subprocess.Popen(
        [
            str(ray),
            "start",
            f"--address={head.address}",
            "--block",
            f"--num-cpus={num_cpus}",
            *ports,
            *labelled,
            "--disable-usage-stats",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_AUTH_MODE": "token", **(environment or {})},
        start_new_session=True,
    )
    end_with_this_process(node.pid)
    return node


def end_with_this_process(pid: int, folder: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a keeper: when this process ends, also by SIGKILL, it ends that one and all that it has started.

    Nobody else does. A killed test runs no cleanup, and Ray's processes have a session of their own.

    Args:
        pid: the process.
        folder: deleted afterwards.
    """
    command = [sys.executable, __file__, str(pid), str(psutil.Process(pid).create_time())]
    keeper = subprocess.Popen(
        [*command, *([] if folder is None else [str(folder)])],
        stdin=subprocess.PIPE,  # the system closes it at the end of this process
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the tests
    )
    KEEPERS.append(keeper)
    return keeper


def keep(pid: int, created: float, folder: Path | None) -> None:
    """Wait for the end of the process that started this one, then end the other and delete the folder."""
    sys.stdin.read()
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - created) < 1.0:  # the number has not passed to another process
            end_all(process, seconds=3.0)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def end_family(process: subprocess.Popen[bytes], seconds: float = 0.0) -> None:
    """End a process of this one and all that it has started; with SIGKILL at once, or after some seconds."""
    with suppress(psutil.NoSuchProcess):
        end_all(psutil.Process(process.pid), seconds)
    process.wait()


def end_all(process: psutil.Process, seconds: float) -> None:
    """End any process and all that it has started; with SIGKILL at once, or after some seconds."""
    family = [*process.children(recursive=True), process]
    if seconds:
        for member in family:
            if member.is_running():
                member.send_signal(signal.SIGTERM)
        _, family = psutil.wait_procs(family, timeout=seconds)
    for member in family:
        if member.is_running():
            member.kill()


if __name__ == "__main__":
    keep(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
