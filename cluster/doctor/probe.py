"""Probes the machine for `shoal doctor`: versions, Ray's left-over processes and files, and limits. It changes nothing.

cluster/doctor/checks.py judges the results. Invariant: it returns findings in any state of the installation, because torch,
fbgemm and torchrec are imported in a separate process, and no other heavy package is imported.
"""

import importlib.metadata
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from cluster.doctor.checks import (
    Finding,
    ImportProbe,
    ProcessInfo,
    addresses_of,
    check_address_file,
    check_authentication,
    check_cpus,
    check_disk,
    check_fbgemm_variant,
    check_gpu,
    check_imports,
    check_memory,
    check_open_files,
    check_orphans,
    check_port,
    check_python,
    check_ray_address,
    check_ray_version,
    check_shared_memory,
    check_versions,
    host_and_port,
)

__all__ = ["Finding", "diagnose"]

_PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "ray")
_PROBE_SECONDS = 180.0  # importing the three takes 3 s, but minutes from a cold network disk
_CONNECT_SECONDS = 1.0


def diagnose() -> list[Finding]:
    """Return the findings about this machine, its environment and the current folder.

    Takes as long as an import of torch: some seconds.
    """
    versions = {name: installed_version(name) for name in _PACKAGES}
    probe = probe_imports()
    ray_dir = ray_temp_dir(os.environ)
    here = Path.cwd()
    shared_memory = Path("/dev/shm")
    address_file = ray_dir / "ray_current_cluster"
    stored = read_text(address_file)
    ray_address = os.environ.get("RAY_ADDRESS")
    daemons = list_daemons()
    # A cluster with another temporary folder is named by its own daemons only.
    addresses = dict.fromkeys(address for address in (stored, ray_address, *addresses_of(daemons)) if address)
    alive = [address for address in addresses if is_reachable(address)]
    cpu_quota, memory_limit = cgroup_limits(Path("/sys/fs/cgroup"))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        check_python(sys.version_info[:3]),
        check_versions(versions),
        check_fbgemm_variant(versions, probe),
        *check_imports(probe),
        check_gpu(probe),
        check_ray_version(versions["ray"]),
        check_address_file(str(address_file), stored, stored in alive),
        check_ray_address(ray_address, ray_address in alive),
        check_orphans(daemons, psutil.Process().username(), alive),
        check_authentication(os.environ.get("RAY_AUTH_MODE"), has_token(os.environ, Path.home()), alive),
        check_port(6379, "Ray's head", "--port", port_in_use(6379), alive),
        check_port(8265, "Ray's dashboard and jobs", "--dashboard-port", port_in_use(8265), alive),
        check_cpus(cpus, cpu_quota),
        check_memory(psutil.virtual_memory().total, memory_limit),
        check_shared_memory(disk_space(shared_memory) if shared_memory.exists() else None),
        check_disk("disk of Ray", str(ray_dir), disk_space(ray_dir), "set RAY_TMPDIR to a folder on a larger disk"),
        check_disk("disk here", str(here), disk_space(here), "free some, or set run.dir to a folder on a larger disk"),
        check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
    ]


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# Prints one line of JSON per step, so that the output shows how far it came before a crash. No exception ends it: a broken
# library may raise anything at import.
_PROBE = """
import importlib, json
for name in ("torch", "fbgemm_gpu", "torchrec"):
    print(json.dumps({"importing": name}), flush=True)
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        print(json.dumps({"module": name, "error": f"{type(error).__name__}: {error}"}), flush=True)
    else:
        if name == "torch":
            devices = [module.cuda.get_device_name(i) for i in range(module.cuda.device_count())]
            devices = devices if module.cuda.is_available() else []
            print(json.dumps({"cuda_build": module.version.cuda, "devices": devices}), flush=True)
print(json.dumps({"done": True}), flush=True)
"""


def probe_imports(timeout_seconds: float = _PROBE_SECONDS) -> ImportProbe:
    """Import torch, fbgemm_gpu and torchrec in a separate process, which may crash or hang, and return the outcome."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return ImportProbe(crash=f"was not done after {timeout_seconds:g} s")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    facts: dict[str, Any] = {key: value for line in lines for key, value in line.items()}
    crash = None
    if "done" not in facts:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        last_words = (done.stderr.strip().splitlines() or [""])[-1]
        crash = f"ended with {ended} while importing {facts.get('importing', 'nothing yet')}: {last_words}".rstrip(": ")
    return ImportProbe(
        errors={line["module"]: line["error"] for line in lines if "error" in line},
        cuda_build=facts.get("cuda_build"),
        devices=tuple(facts.get("devices", ())),
        crash=crash,
    )


def ray_temp_dir(environment: Mapping[str, str]) -> Path:
    """Return the folder of Ray's sessions and spilled objects, by the rules of ray._common.utils."""
    parent = environment.get("RAY_TMPDIR") or (environment.get("TMPDIR") if sys.platform == "linux" else None)
    return Path(parent or ("/tmp" if os.name == "posix" else tempfile.gettempdir())) / "ray"


def read_text(file: Path) -> str | None:
    """Return the stripped text of a file, or None if it is empty or cannot be read."""
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def is_reachable(address: str) -> bool:
    """Return whether something listens at host:port."""
    place = host_and_port(address)
    if place is None:
        return False
    try:
        socket.create_connection(place, timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def list_daemons() -> list[ProcessInfo]:
    """Return Ray's daemons on this machine."""
    names: dict[int, str] = {}
    daemons = []
    for process in psutil.process_iter(["pid", "ppid", "name", "username", "cmdline", "status"]):
        seen = process.info  # None in a field: not permitted
        names[seen["pid"]] = seen["name"] or ""
        if seen["name"] in ("raylet", "gcs_server") and seen["status"] != psutil.STATUS_ZOMBIE:
            daemons.append(seen)
    return [
        ProcessInfo(
            pid=seen["pid"],
            parent_pid=seen["ppid"] or 0,
            parent_name=names.get(seen["ppid"] or 0, ""),
            name=seen["name"],
            user=seen["username"] or "",
            command=" ".join(seen["cmdline"] or []),
        )
        for seen in daemons
    ]


def has_token(environment: Mapping[str, str], home: Path) -> bool:
    """Return whether Ray will find a token. The token itself is not read."""
    path = environment.get("RAY_AUTH_TOKEN_PATH")
    return bool(environment.get("RAY_AUTH_TOKEN")) or (Path(path) if path else home / ".ray" / "auth_token").is_file()


def port_in_use(port: int) -> bool:
    """Return whether a port of this machine is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections that linger do not count
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def cgroup_limits(root: Path) -> tuple[float | None, int | None]:
    """Return the CPUs and bytes of memory that the control group allows (version 2, then 1); None without a limit."""

    def words(*names: str) -> list[str]:
        for name in names:
            if text := read_text(root / name):
                return text.split()
        return []

    quota = words("cpu.max") or words("cpu/cpu.cfs_quota_us") + words("cpu/cpu.cfs_period_us")
    cpus = int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0] not in ("max", "-1") else None
    memory = words("memory.max", "memory/memory.limit_in_bytes")
    # Version 1 writes "no limit" as a number near 2^63.
    limit = int(memory[0]) if memory and memory[0] != "max" and int(memory[0]) < 2**60 else None
    return cpus, limit


def disk_space(folder: Path) -> tuple[int, int] | None:
    """Return the total and free bytes of the disk of `folder`, or of its nearest parent that exists."""
    for place in (folder, *folder.parents):
        try:
            usage = shutil.disk_usage(place)
        except OSError:
            continue
        return usage.total, usage.free
    return None
