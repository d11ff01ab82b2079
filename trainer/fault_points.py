"""Points at which tests make a rank fail. Without the environment variable of the tests, a point does nothing.

SHOAL_TEST_FAULTS names a JSON file with a list of faults. Each happens once, also over restarts, unless it repeats: a marker
next to the file is created first. This is no setting of a run, and no configuration reaches it.
"""

import errno
import json
import os
import signal
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

VARIABLE = "SHOAL_TEST_FAULTS"
Point = Literal[
    "data",  # before a rank takes its next batch
    "forward",  # after the look-up of a step
    "backward",  # after the ranks have agreed on a step, before gradients enter the tables
    "optimizer",  # after gradients have entered the tables, before the dense weights are updated
    "evaluation",  # before an evaluation during training
    "staging",  # before the tensors of a checkpoint are copied
    "writing",  # while a rank writes its file of a checkpoint
    "hashing",  # after the files are written, before their hashes are collected
    "before commit",  # before the attempt is renamed, on the first rank
    "after commit",  # after it is renamed, on the first rank
    "reporting",  # after the commit, before old checkpoints are retired, on the first rank
]


@dataclass(frozen=True)
class InjectedFault:
    """A fault, and where it happens."""

    name: str
    """Unique in the file."""
    point: Point
    rank: int
    step: int
    """The first step at which it may happen: steps trained before."""
    action: Literal["kill", "stop", "slow", "no space", "input error", "exception"]
    seconds: float = 0.0
    """Of "slow"."""
    repeats: bool = False
    """Whether it happens in every step from then on, such as for a rank that is slow."""


def reach(point: Point, rank: int, step: int) -> None:
    """Let the faults of this point happen.

    Raises:
        OSError: a fault "no space" or "input error".
        RuntimeError: a fault "exception".
    """
    if VARIABLE not in os.environ:
        return
    path = Path(os.environ[VARIABLE])
    for fault in _faults(path):
        if (
            (fault.point, fault.rank) == (point, rank)
            and step >= fault.step
            and (_is_first(path, fault) or fault.repeats)
        ):
            _act(fault)


@lru_cache
def _faults(path: Path) -> tuple[InjectedFault, ...]:
    return tuple(InjectedFault(**values) for values in json.loads(path.read_text(encoding="utf-8")))


def _is_first(path: Path, fault: InjectedFault) -> bool:
    """Return whether the fault has not happened yet, and note that it happens now."""
    try:
        path.with_name(f"{path.name}.{fault.name}.happened").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _act(fault: InjectedFault) -> None:
    match fault.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow":
            time.sleep(fault.seconds)
        case "no space":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "input error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        case "exception":
            raise RuntimeError(f"injected fault {fault.name}")
