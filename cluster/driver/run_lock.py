"""Run lock: one command at a time writes to a run folder. No ray, no torch."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from trainer.errors import UserError
from trainer.storage.objects import lease
from trainer.storage.objects.paths import ObjectPath

LOCK_ATTEMPTS = 3
LOCK_SECONDS = 0.1  # between two attempts


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the run folder for the body. Raises UserError that names the holder if another process has it.

    A run folder on an object storage has a lease (trainer/storage/objects/lease.py).
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.dir {folder}: is a file; choose another run.dir")
    known = ("config.json", "state.json", ".lock", "dataset", "plan")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in known):
        raise UserError(
            f"run.dir {folder}: holds files that are not of a run, so nothing was written; choose another run.dir"
        )
    if isinstance(folder, ObjectPath):
        try:
            with lease.leased(folder, this_process()):
                yield
        except lease.HeldError as error:
            raise UserError(_busy(folder, str(error))) from None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"run.dir {folder}: cannot be written ({error.strerror}); choose another run.dir") from None
    with file:
        if not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(_busy(folder, holder)) from None
        with suppress(OSError):  # the holder's name is for messages only, and is no reason to fail on a full disk
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), this_process().encode())
        yield


def _busy(folder: Path, holder: str) -> str:
    return f"run.dir {folder}: in use by {holder}; wait for it, stop it, or choose another run.dir"


def _lock(file: TextIO) -> bool:
    """Lock the file. Return False if another process holds it for longer than holder_of needs to look."""
    for attempt in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if attempt + 1 < LOCK_ATTEMPTS:
                time.sleep(LOCK_SECONDS)
        else:
            return True
    return False


def holder_of(folder: Path) -> str | None:
    """Return the process that holds the run folder, or None. The lock ends with its process, however that ended.

    The lease of a process that was killed on another machine ends a minute later.
    """
    if isinstance(folder, ObjectPath):
        return lease.holder_of(folder)
    try:
        with (folder / ".lock").open(encoding="utf-8") as file:
            holder = file.read().strip()
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return holder
    except OSError:
        pass
    return None


def this_process() -> str:
    """Return the name of this process for messages."""
    return f"process {os.getpid()} on {socket.gethostname()}"
