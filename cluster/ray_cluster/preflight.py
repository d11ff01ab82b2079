"""Checks before a job is submitted: nodes and version of the cluster, from outside, and the files of the run."""

import os
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes

from cluster.config.run_config import Config
from cluster.doctor.checks import TESTED_RAY
from cluster.ray_cluster.room import NodeRoom
from trainer.data.logs.files import entries_of, find_files
from trainer.data.logs.format_names import FormatSetting
from trainer.errors import UserError, first_line
from trainer.storage.objects.paths import ObjectPath

MAX_NODES = 10_000
FIRST_NODE_SECONDS = 20.0  # until a cluster that has just been started lists its head
POLL_SECONDS = 0.5


def nodes_of(dashboard: str) -> list[NodeRoom]:
    """Return the nodes of a cluster that are alive. Raises UserError if the dashboard does not answer.

    A cluster that has just been started lists no node for some seconds, not even its head: these are waited for.
    """
    end = time.monotonic() + FIRST_NODE_SECONDS
    while True:
        nodes = _nodes(dashboard)
        if nodes or time.monotonic() > end:
            return nodes
        time.sleep(POLL_SECONDS)


def _nodes(dashboard: str) -> list[NodeRoom]:
    try:
        states = list_nodes(address=dashboard, limit=MAX_NODES, raise_on_missing_output=False)
    except Exception as error:
        if (
            isinstance(error, RuntimeError | ConnectionError | OSError)
            or "RayStateApiException" in type(error).__name__
        ):
            raise UserError(f"--dashboard {dashboard}: its nodes cannot be listed ({first_line(error)})") from None
        raise
    return [
        NodeRoom(state.node_ip, state.resources_total, state.labels or {}) for state in states if state.state == "ALIVE"
    ]


def version_problem(client: JobSubmissionClient) -> str | None:
    """Return why the cluster's version of Ray does not fit, or None."""
    version = str(client.get_version_info().get("ray_version", "")) if hasattr(client, "get_version_info") else ""
    if not version:
        version = str(_version_info(client).get("ray_version", ""))
    if version and ".".join(version.split(".")[:2]) != TESTED_RAY:
        return f"it runs Ray {version}, and Shoal needs Ray {TESTED_RAY}; install that version on its nodes"
    return None


def _version_info(client: Any) -> dict[str, Any]:
    # The client compares versions itself, and keeps what the cluster answered to itself.
    answer = client._do_request("GET", "/api/version")
    values: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return values


def missing_files(config: Config, command: str) -> list[str]:
    """Return what is wrong with the folders and logs of a run, as this machine sees them.

    command: the command that is submitted; only `run` and `prepare` read the logs of the config.
    """
    problems = []
    parent = existing_parent(config.run_dir)
    if isinstance(parent, ObjectPath):
        problems += storage_problems(config.run_dir)
    elif not os.access(parent, os.W_OK):
        problems.append(f"run.dir {config.run_dir}: {parent} cannot be written")
    if command in ("run", "prepare"):
        for setting, entries in paths_of(config).items():
            problems += [f"{setting} = {entry}: no such file" for entry in entries if not _exists(entry)]
        problems += unreadable_uris(config)
    if isinstance(config.dataset_dir, ObjectPath) and config.run.dataset is not None:
        problems += storage_problems(config.dataset_dir, "run.dataset")
    return problems


def uses_objects(config: Config) -> bool:
    """Return whether the run folder, the dataset or the logs are on an object storage."""
    return any(isinstance(path, ObjectPath) for path in (config.run_dir, config.dataset_dir)) or bool(_uris_of(config))


def unreadable_uris(config: Config) -> list[str]:
    """Return why logs on an object storage cannot be found from this process."""
    problems = []
    for setting, (format, entries) in _uris_of(config).items():
        try:
            find_files(entries, format, setting)
        except UserError as error:
            problems.append(str(error))
    return problems


def _uris_of(config: Config) -> dict[str, tuple[FormatSetting, list[str]]]:
    """Return the format and the URIs of a config's logs by setting."""
    uris = {
        name: (source.format, [entry for entry in entries_of(source.path) if "://" in entry])
        for name, source in _sources_of(config).items()
        if source is not None
    }
    return {name: given for name, given in uris.items() if given[1]}


def storage_problems(folder: Path, setting: str = "run.dir") -> list[str]:
    """Return why an object storage cannot be written from this process, as a list of at most one text."""
    probe = folder.parent / f".shoal-probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return [
            f"{setting} {folder}: cannot be written ({error.strerror}); check the URI and the credentials in the environment"
        ]
    return []


def paths_of(config: Config) -> dict[str, list[str]]:
    """Return the local paths of a config's logs by setting; those of other filesystems are left out."""
    return {
        name: [entry for entry in entries_of(source.path) if "://" not in entry]
        for name, source in _sources_of(config).items()
        if source is not None
    }


def _sources_of(config: Config) -> dict[str, Any]:
    """Return the sections of logs by the setting of their path; None for those that the config lacks."""
    logs = config.logs
    return {
        "logs.path": logs,
        "logs.history.path": logs.history,
        "logs.items.path": logs.items,
        "logs.users.path": logs.users,
    }


def existing_parent(path: Path) -> Path:
    """Return the nearest folder of a path that exists."""
    if isinstance(path, ObjectPath):
        return path.parent  # it has no folders that could be missing
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _exists(entry: str) -> bool:
    path = Path(entry).expanduser().absolute()
    return path.exists() or any(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def all_here(nodes: Sequence[NodeRoom]) -> bool:
    """Return whether all nodes are on this machine, so that its view of files is theirs."""
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    own |= {socket.gethostname(), "127.0.0.1"}
    return bool(nodes) and all(node.ip in own for node in nodes)
