"""Probe of a cluster, run as a job of its own before the real one: `python -m cluster.ray_cluster.probe config.json COMMAND`.

On each node it checks the installed packages, and that the node sees the run folder and the logs. It prints one line of JSON.
Ray is imported only here and in the other modules of this package.
"""

import json
import sys
import uuid
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.doctor.packages import TRAINING
from trainer.storage.objects.paths import path_of

MARK = "shoal-probe: "
NODE_SECONDS = 60.0
PYTHON = (3, 11)


def look(config_file: str, command: str, marker: str | None) -> list[str]:
    """Return what is wrong on the node that runs this.

    Args:
        config_file: text of the job's config.
        command: the command that will be submitted.
        marker: a file that the driver of the probe wrote into the run's storage; None if that failed.
    """
    from cluster.config.run_config import check_config
    from cluster.ray_cluster.preflight import missing_files

    missing = [name for name in TRAINING if find_spec(name) is None]
    problems = [f"{', '.join(missing)}: not installed"] if missing else []
    if sys.version_info < PYTHON:
        problems.append(f"Python {sys.version.split()[0]}: Shoal needs 3.11 or later")
    problems += missing_files(check_config(json.loads(config_file), "config.json"), command)
    if marker is not None and not path_of(marker).exists():
        problems.append(
            f"run.dir: {path_of(marker).parent} is not shared with the other nodes; use a folder that all nodes see"
        )
    return problems


def versions() -> dict[str, str]:
    """Return the versions of the packages that must be the same on all nodes."""
    result = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in ("torch", "torchrec", "pyarrow"):
        with suppress(metadata.PackageNotFoundError):
            result[name] = metadata.version(name)
    return result


def probe(config_file: str, command: str) -> list[str]:
    """Return what is wrong on any node of the cluster that Ray has joined."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.config.run_config import check_config
    from cluster.ray_cluster.preflight import existing_parent

    config = check_config(json.loads(config_file), "config.json")
    marker = existing_parent(config.run_dir) / f".shoal-probe-{uuid.uuid4().hex[:8]}"
    written: str | None = None
    with suppress(OSError):
        marker.write_text("")
        written = str(marker)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}

    def on_node() -> tuple[list[str], dict[str, str]]:
        return look(config_file, command, written), versions()

    tasks = {
        node: ray.remote(num_cpus=0, max_retries=0)(on_node)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote()
        for node in nodes
    }
    try:
        return _problems(nodes, tasks)
    finally:
        with suppress(OSError):
            marker.unlink()


def _problems(nodes: dict[str, str], tasks: dict[str, Any]) -> list[str]:
    """Return the problems of all nodes, each with the address of its node."""
    import ray

    problems: list[str] = []
    seen: dict[str, dict[str, str]] = {}
    ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=NODE_SECONDS)
    for node, task in tasks.items():
        try:
            of_node, seen[nodes[node]] = ray.get(task, timeout=0.1)
        except ray.exceptions.RayError as error:
            of_node = [f"does not run a task ({str(error).strip().splitlines()[0]})"]
        problems += [f"node {nodes[node]}: {problem}" for problem in of_node]
    first = next(iter(seen.items()), None)
    for address, found_versions in seen.items():
        if first is not None and found_versions != first[1]:
            problems.append(
                f"node {address}: has {found_versions}, and node {first[0]} has {first[1]}; install the same"
            )
    return problems


def main() -> None:
    """Print the problems of the cluster as one line of JSON."""
    import logging

    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    problems = probe(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2])
    print(MARK + json.dumps(problems), flush=True)


if __name__ == "__main__":
    main()
