"""Free memory of this machine, or of the container that this process is in."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def free_memory(cgroup: Path = CGROUP) -> int:
    """Return the bytes that are left before the system kills a process for memory.

    A container has a limit of its own (cgroup v2), at which a process is killed although the machine has memory left. Files in
    memory do not count as used, since the system gives them up.
    """
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # without a limit the file says "max"
        return free
    return min(free, limit - used + int(statistics.get("inactive_file", 0)))
