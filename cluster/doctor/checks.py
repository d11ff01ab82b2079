"""Checks of `shoal doctor`: pure functions from the results of the probe to findings with remedies.

cluster/doctor/probe.py probes the machine and calls them. Nothing here touches files, processes or the network.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from cluster.doctor.packages import INSTALL
from cluster.ray_cluster.token import GET_TOKEN

GIB = 2**30
TRIOS = {("2.13", "1.8", "1.8"), ("2.11", "1.6", "1.6")}  # (torch, torchrec, fbgemm) that work together
TESTED_RAY = "2.60"
_INSTALL = f"pip uninstall -y torchrec fbgemm-gpu fbgemm-gpu-cpu; {INSTALL}"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str  # of the check
    status: Literal["ok", "warning", "problem"]
    what: str  # the observation
    remedy: str = ""  # empty if the status is ok


@dataclass(frozen=True)
class ImportProbe:
    """The outcome of importing torch, fbgemm_gpu and torchrec in a separate process."""

    errors: Mapping[str, str] = field(default_factory=dict)  # module -> error of its import
    cuda_build: str | None = None  # the CUDA version that torch was built for
    devices: tuple[str, ...] = ()  # names of the GPUs that torch can use
    crash: str | None = None  # how the process ended, if it did not finish


@dataclass(frozen=True)
class ProcessInfo:
    """A daemon of Ray on this machine: a raylet or a gcs_server."""

    pid: int
    parent_pid: int
    parent_name: str
    name: str
    user: str
    command: str


# ---- what is installed


def check_python(version: tuple[int, ...]) -> Finding:
    """Check the version of Python."""
    text = ".".join(map(str, version))
    if version < (3, 11):
        return Finding(
            "python", "problem", f"Python {text}; Shoal needs 3.11 or later", "create a new venv with python3.11"
        )
    return Finding("python", "ok", f"Python {text}")


def check_versions(versions: Mapping[str, str | None]) -> Finding:
    """Check that torch, torchrec and fbgemm are versions that work together."""
    torch = versions["torch"]
    torchrec = versions["torchrec"]
    fbgemm = versions["fbgemm-gpu-cpu"] or versions["fbgemm-gpu"]
    if torch is None or torchrec is None or fbgemm is None:
        trio = {"torch": torch, "torchrec": torchrec, "fbgemm-gpu-cpu or fbgemm-gpu": fbgemm}
        missing = ", ".join(name for name, version in trio.items() if version is None)
        return Finding("versions", "problem", f"not installed: {missing}", _INSTALL)
    seen = f"torch {torch}, torchrec {torchrec}, fbgemm {fbgemm}"
    if (_minor(torch), _minor(torchrec), _minor(fbgemm)) not in TRIOS:
        known = " or ".join("/".join(trio) for trio in sorted(TRIOS, reverse=True))
        return Finding("versions", "problem", f"{seen} do not work together; known to work: {known}", _INSTALL)
    return Finding("versions", "ok", seen)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_fbgemm_variant(versions: Mapping[str, str | None], probe: ImportProbe) -> Finding:
    """Check that one build of fbgemm is installed, and that it fits torch and the machine."""
    name = "fbgemm"
    cpu = versions["fbgemm-gpu-cpu"]
    cuda = versions["fbgemm-gpu"]
    if cpu and cuda:
        what = "fbgemm-gpu-cpu and fbgemm-gpu are both installed, into the same folder, so that one overwrote the other"
        return Finding(name, "problem", what, _INSTALL)
    if cuda and "torch" not in probe.errors and probe.crash is None and probe.cuda_build is None:
        what = "fbgemm-gpu is the CUDA build, but torch is built without CUDA: libtorch_cuda.so is missing"
        return Finding(name, "problem", what, _INSTALL)
    if cuda and not probe.devices:
        what = "fbgemm-gpu is the CUDA build, but torch sees no GPU on this machine"
        return Finding(name, "warning", what, f"for a machine without GPUs: {_INSTALL}")
    if cpu and probe.devices:
        what = "fbgemm-gpu-cpu has no GPU kernels, but torch sees a GPU; training on it would fail"
        return Finding(name, "warning", what, _INSTALL)
    if cpu or cuda:
        return Finding(name, "ok", "the CPU build" if cpu else "the CUDA build")
    return Finding(name, "problem", "no build of fbgemm is installed", _INSTALL)


def check_imports(probe: ImportProbe) -> list[Finding]:
    """Return one finding per module that cannot be imported."""
    findings = []
    if probe.crash is not None:
        what = f"the process that imports torch, fbgemm_gpu and torchrec {probe.crash}"
        findings.append(Finding("imports", "problem", what, f"reinstall them: {_INSTALL}"))
    for module, error in probe.errors.items():
        text = error.splitlines()[0]
        if "libtorch_cuda.so" in error:
            text += " (the CUDA build of fbgemm with the CPU build of torch)"
        findings.append(Finding("imports", "problem", f"import {module} fails with {text}", _INSTALL))
    return findings or [Finding("imports", "ok", "torch, fbgemm_gpu and torchrec can be imported")]


def check_gpu(probe: ImportProbe) -> Finding:
    """Name the GPUs that torch can use."""
    if probe.devices:
        return Finding("gpu", "ok", f"{len(probe.devices)} GPU(s): {', '.join(sorted(set(probe.devices)))}")
    build = f"built for CUDA {probe.cuda_build}" if probe.cuda_build else "built without CUDA"
    return Finding("gpu", "ok", f"no GPU visible (torch is {build}); training runs on CPUs")


def check_ray_version(version: str | None) -> Finding:
    """Check the version of Ray."""
    if version is None:
        return Finding("ray", "problem", "Ray is not installed", INSTALL)
    if _minor(version) != TESTED_RAY:
        remedy = f"pip install --no-deps ray=={TESTED_RAY}.0"
        return Finding("ray", "warning", f"Ray {version}; Shoal is tested with {TESTED_RAY}", remedy)
    return Finding("ray", "ok", f"Ray {version}")


# ---- left-overs of Ray, and its environment


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return the parts of host:port, ray://host:port or http://host:port; None for anything else, such as "auto"."""
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() and int(port) < 2**16 else None


def check_address_file(file: str, address: str | None, reachable: bool) -> Finding:
    """Check the address file of Ray. A head that dies leaves it, and Ray then tries to join that head instead of starting.

    Args:
        file: The path of the file.
        address: Its content.
        reachable: Whether something listens at the address.
    """
    name = "ray left-overs"
    if address is None:
        return Finding(name, "ok", "no address of a running cluster is stored")
    if reachable:
        return Finding(name, "ok", f"a cluster runs at {address} (stored in {file})")
    what = f"{file} names a head at {address}, where nothing answers: it died, and Ray still tries to join it"
    return Finding(name, "problem", what, f"rm {file}")


def check_ray_address(value: str | None, reachable: bool) -> Finding:
    """Check the environment variable RAY_ADDRESS with the value `value`."""
    name = "RAY_ADDRESS"
    if value is None or value in ("", "auto", "local"):
        return Finding(name, "ok", f"is {value}" if value else "is not set")
    if host_and_port(value) is None:
        what = f"is {value}, which is not of the form host:port"
        return Finding(name, "problem", what, "unset RAY_ADDRESS, or set it to host:6379 of the head")
    if not reachable:
        what = f"is {value}, where nothing answers"
        return Finding(name, "problem", what, "unset RAY_ADDRESS, or start the cluster and check firewalls")
    return Finding(name, "ok", f"is {value}, which answers")


def addresses_of(daemons: Iterable[ProcessInfo]) -> list[str]:
    """Return the addresses of the heads that these daemons of Ray belong to, as their command lines say."""
    addresses = [match[1] for daemon in daemons for match in re.finditer(r"--gcs-address=(\S+:\d+)", daemon.command)]
    for daemon in daemons:
        port = re.search(r"--gcs_server_port=([1-9]\d*)\b", daemon.command)
        host = re.search(r"--node-ip-address=(\S+)", daemon.command)
        if port and host:
            addresses.append(f"{host[1]}:{port[1]}")
    return list(dict.fromkeys(addresses))


def check_orphans(daemons: Iterable[ProcessInfo], user: str, alive: Iterable[str]) -> Finding:
    """Find Ray's daemons of this user without a parent process that belong to none of the clusters at `alive`.

    `ray start` also leaves its daemons to init, hence the second condition. All daemons of a session are one cluster's.
    """
    name = "ray processes"
    ports = [place[1] for address in alive if (place := host_and_port(address))]
    daemons = list(daemons)

    def session_of(daemon: ProcessInfo) -> str | None:
        session = re.search(r"--session-name=(\S+)", daemon.command)
        return session[1] if session else None

    def names_a_port(daemon: ProcessInfo) -> bool:
        return any(re.search(rf"(:|--gcs_server_port=){port}\b", daemon.command) for port in ports)

    known = {session_of(daemon) for daemon in daemons if names_a_port(daemon)} - {None}

    def is_known(daemon: ProcessInfo) -> bool:
        return names_a_port(daemon) or session_of(daemon) in known

    def has_lost_its_parent(daemon: ProcessInfo) -> bool:
        # In a container the driver itself may be process 1.
        driver = daemon.parent_name.startswith(("python", "ray", "shoal"))
        return (daemon.parent_pid <= 1 and not driver) or daemon.parent_name in ("init", "systemd")

    orphans = [d for d in daemons if d.user == user and has_lost_its_parent(d) and not is_known(d)]
    if not orphans:
        return Finding(name, "ok", "none left over")
    orphans.sort(key=lambda daemon: daemon.pid)
    listed = ", ".join(f"{daemon.name} (pid {daemon.pid})" for daemon in orphans)
    what = f"{listed}: no driver and no known cluster; left over by Ray, they use memory and ports"
    # Not `ray stop`, which ends all Ray processes of the user, including those in use.
    return Finding(name, "warning", what, f"kill {' '.join(str(daemon.pid) for daemon in orphans)}")


def check_authentication(mode: str | None, token: bool, alive: Iterable[str]) -> Finding:
    """Check the token. Clusters require one by default, and each command sends the token that it finds.

    Args:
        mode: The environment variable RAY_AUTH_MODE.
        token: Whether Ray finds a token (cluster.ray_cluster.token).
        alive: The addresses of running clusters.
    """
    name = "authentication"
    wanted = (mode or "").lower()
    if wanted == "token" and not token:
        return Finding(name, "problem", "RAY_AUTH_MODE is token, but there is no token", GET_TOKEN)
    if wanted:
        return Finding(name, "ok", f"RAY_AUTH_MODE is {mode}")
    if token:
        own = "Ray's own `ray job` needs RAY_AUTH_MODE=token in its environment"
        return Finding(name, "ok", f"the token of this machine is sent to clusters; {own}")
    if not list(alive):
        return Finding(name, "ok", "RAY_AUTH_MODE is not set; a cluster started here makes its own token")
    what = 'no token is available, and a cluster that requires one answers "Missing authentication token"'
    return Finding(name, "warning", what, GET_TOKEN)


def check_port(port: int, purpose: str, option: str, in_use: bool, alive: Iterable[str]) -> Finding:
    """Check that a port is free, or in use by a running cluster.

    Args:
        port: The port.
        purpose: What Ray uses it for.
        option: The option of `ray start` that sets another port.
        in_use: Whether the port is in use.
        alive: The addresses of running clusters.
    """
    name = f"port {port}"
    if not in_use:
        return Finding(name, "ok", f"free, for {purpose}")
    if list(alive):
        return Finding(name, "ok", f"in use, presumably by the running cluster ({purpose})")
    remedy = f"`ss -ltnp` shows the process that uses it; stop it, or ray start --head {option}=ANOTHER"
    return Finding(
        name, "warning", f"in use, but no running cluster is known; it is not available for {purpose}", remedy
    )


# ---- limits of the machine


def check_cpus(visible: int, quota: float | None) -> Finding:
    """Check that the control group allows all visible CPUs."""
    if quota is not None and quota < visible:
        what = f"{visible} CPUs are visible, but the control group allows {quota:g}; more threads wait for each other"
        usable = max(1, math.floor(quota))
        remedy = f"set cluster.num_workers x cluster.cpus_per_worker to at most {usable}"
        return Finding("cpus", "warning", what, remedy)
    return Finding("cpus", "ok", f"{visible} CPUs")


def check_memory(total: int, limit: int | None) -> Finding:
    """Check that the memory is enough for Ray and two workers."""
    usable = min(total, limit or total)
    what = f"{usable / GIB:.1f} GiB" + (" (limit of the control group)" if usable < total else "")
    if usable < 4 * GIB:
        remedy = "use a larger machine, or set cluster.num_workers = 1"
        return Finding("memory", "warning", f"{what}; Ray and two workers need 4 GiB before any table", remedy)
    return Finding("memory", "ok", what)


def check_shared_memory(space: tuple[int, int] | None) -> Finding:
    """Check /dev/shm, where Ray stores its objects. `space` is its total and free bytes; None on systems without it."""
    name = "shared memory"
    if space is None:
        return Finding(name, "ok", "no /dev/shm on this system; Ray stores its objects in its temporary folder")
    what = f"/dev/shm has {space[0] / GIB:.1f} GiB, {space[1] / GIB:.1f} GiB free"
    if min(space) < 2 * GIB:
        remedy = "enlarge it (docker run --shm-size=4g; mount -o remount,size=4g /dev/shm), or delete files in it"
        return Finding(
            name, "warning", f"{what}: too little for Ray's objects, which are then written to the slower disk", remedy
        )
    return Finding(name, "ok", what)


def check_disk(name: str, folder: str, space: tuple[int, int] | None, remedy: str) -> Finding:
    """Check the disk of a folder.

    Args:
        name: The name of the finding.
        folder: A folder on the disk.
        space: The total and free bytes of the disk; None if unknown.
        remedy: What to do if it is too full.
    """
    if space is None:
        return Finding(name, "warning", f"{folder}: the free space is unknown", remedy)
    total, free = space
    what = f"{folder}: {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < GIB:
        return Finding(name, "problem", f"{what}, not enough for a run", remedy)
    if free < 5 * GIB or free < 0.05 * total:  # Ray stops spilling objects at 95 %
        return Finding(name, "warning", f"{what}; at 95 % full Ray stores no more objects there", remedy)
    return Finding(name, "ok", what)


def check_open_files(soft: int, hard: int) -> Finding:
    """Check the soft and hard limit of open files, -1 for none. Ray needs several for each worker and connection."""
    if 0 <= soft < 8192:
        allowed = "65536" if hard < 0 or hard >= 65536 else f"{hard} (more needs an administrator)"
        return Finding("open files", "warning", f"limit of {soft}; Ray advises 8192 or more", f"ulimit -n {allowed}")
    return Finding("open files", "ok", f"limit of {soft}" if soft >= 0 else "no limit")
