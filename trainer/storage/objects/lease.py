"""Exclusive use of a folder on an object storage, which has no locks: a lease that its holder renews.

Each process that wants a folder writes an object of its own into `.NAME.lease/` next to the folder, and then lists that
place. It holds the folder if no other lease is there. The listings of S3, GCS, Azure and HDFS show each object that was written
before. So no folder is given to two processes: of two that write, the later one sees the other. Two that ask at the same moment
may both be refused.

The holder renews its lease. One that is not renewed for a minute has lost its process, and the next one removes it. A holder
that finds its lease removed, or cannot renew it for so long, ends its own process at once: two that write would be worse. Times are
those of the storage.
"""

import json
import os
import random
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from trainer.storage.objects.paths import ObjectPath

RENEW_SECONDS = 10.0
EXPIRE_SECONDS = 60.0
POLL_SECONDS = 0.5
ATTEMPTS = 4


class HeldError(Exception):
    """A folder that another process holds; `str()` is the name of that process."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a folder."""

    name: str
    """For people."""
    machine: str
    """The machine, its start, and the space of its process ids."""
    pid: int
    """The process."""
    created: float
    """The time at which the process started."""

    @property
    def is_gone(self) -> bool:
        """True if the process was on this machine and has ended. Unknown for other machines."""
        if self.machine != _machine():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.created) > 1.0)
        except psutil.NoSuchProcess:
            return True


@contextmanager
def leased(folder: ObjectPath, name: str, on_lost: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the folder for the body.

    Args:
        folder: what is held. It need not exist.
        name: of this process, for the messages of others.
        on_lost: called in a thread if the lease is lost; by default a command, or a program that ignores interrupts, ends at
            once with code 1, and the main thread of another program is interrupted.

    Raises:
        HeldError: another process holds it.
        OSError: the storage refuses the lease.
    """
    own = _leases(folder) / f"{uuid.uuid4().hex}.json"
    process = psutil.Process()
    holder = Holder(name, _machine(), process.pid, process.create_time())
    text = json.dumps(asdict(holder))
    _acquire(own, text)
    ended = threading.Event()
    arguments = (own, text, ended, on_lost or (lambda: _end_this_process(folder)))
    thread = threading.Thread(target=_renew, args=arguments, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            own.unlink(missing_ok=True)


def holder_of(folder: ObjectPath) -> str | None:
    """Return the name of the process that holds a folder, or None. It compares the storage's clock with that of this machine."""
    for lease in _leases(folder).glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            fresh = time.time() - lease.stat().st_mtime <= EXPIRE_SECONDS
            holder = Holder(**json.loads(lease.read_text()))
            if fresh and not holder.is_gone:
                return holder.name
    return None


def _leases(folder: ObjectPath) -> ObjectPath:
    return folder.parent / f".{folder.name}.lease"


def _acquire(own: ObjectPath, text: str) -> None:
    """Write the lease and remove those of dead processes. Raises HeldError."""
    for attempt in range(ATTEMPTS):
        own.write_text(text)
        others = [lease for lease in own.parent.glob("*.json") if lease.name != own.name]
        alive = [lease for lease in others if not _remove_if_dead(lease, own)]
        if not alive:
            return
        own.unlink(missing_ok=True)
        if attempt + 1 == ATTEMPTS or _is_renewed(alive[0]):
            raise HeldError(_name_in(alive[0]))
        time.sleep(random.uniform(0.0, POLL_SECONDS))


def _remove_if_dead(lease: ObjectPath, own: ObjectPath) -> bool:
    """Return whether a lease is gone. One that has expired is removed, and one of a process that has ended on this machine."""
    try:
        age = own.stat().st_mtime - lease.stat().st_mtime
        if age <= EXPIRE_SECONDS and not Holder(**json.loads(lease.read_text())).is_gone:
            return False
    except FileNotFoundError:
        return True
    except (ValueError, TypeError):
        return False  # not written by this version; it may expire
    lease.unlink(missing_ok=True)
    return True


def _is_renewed(lease: ObjectPath) -> bool:
    """Wait until the lease is renewed, and return True; or until it is gone or would expire, and return False."""
    try:
        first = lease.stat().st_mtime
        end = time.monotonic() + EXPIRE_SECONDS
        while time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            if lease.stat().st_mtime != first:
                return True
    except FileNotFoundError:
        pass
    return False


def _name_in(lease: ObjectPath) -> str:
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(lease.read_text())).name
    return "another process"


def _renew(own: ObjectPath, text: str, ended: threading.Event, on_lost: Callable[[], object]) -> None:
    """Write the lease again and again. It is lost if another process has removed it, or the storage did not answer for too long."""
    renewed = time.monotonic()
    while not ended.wait(RENEW_SECONDS):
        try:
            is_there = own.exists()
            if is_there:
                is_late = time.monotonic() - renewed > EXPIRE_SECONDS - RENEW_SECONDS
                own.write_text(text)
                # Another process may have removed the expired lease between the two lines above. Its own one is there then.
                is_there = not is_late or len(list(own.parent.glob("*.json"))) == 1
                renewed = time.monotonic()
        except OSError:
            is_there = time.monotonic() - renewed < EXPIRE_SECONDS - RENEW_SECONDS
        if not is_there:
            on_lost()
            return


def _end_this_process(folder: ObjectPath) -> None:
    print(
        f"{folder}: the lease of this process was lost, so another may write there now; run the command again",
        file=sys.stderr,
    )
    main = threading.main_thread().ident
    is_command = callable(signal.getsignal(signal.SIGTERM))  # its handler would save a checkpoint first
    # A shell ignores interrupts for what its scripts start in the background. Nothing else would stop such a program from writing.
    ignores_interrupts = not callable(signal.getsignal(signal.SIGINT))
    if is_command or ignores_interrupts or main is None:
        os._exit(1)
    signal.pthread_kill(main, signal.SIGINT)  # which ends a wait; an interrupt that Python simulates comes after it


def _machine() -> str:
    """Return a name that only processes of one machine share, since its start and within one space of process ids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return "/".join(parts)
