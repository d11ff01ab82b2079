"""An output folder that one command writes at a time: ownership, lock and clean-up, with one message for each failure.

Attempts work in a hidden folder inside it, move results out by rename, and write a record last. The hidden folder is
removed after that. So results next to a hidden folder and without a record come from a killed attempt, and only then
are they leftovers. Without a hidden folder such files may belong to anybody.
"""

import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError
from trainer.storage.objects.lease import HeldError, leased
from trainer.storage.objects.paths import ObjectPath, remove_tree


@dataclass(frozen=True)
class OwnNames:
    """The names that one kind of command writes into its output folder."""

    record: str
    """The file that is written last: with it the output is finished."""
    work: str
    """The beginning of the names of hidden folders in which attempts work."""
    results: re.Pattern[str]
    """Names of results that an attempt moves out, and of temporary files."""

    def leftovers(self, names: Iterable[str]) -> list[str]:
        """Return which of the names in a folder without a record an attempt left."""
        names = list(names)
        if not any(name.startswith(self.work) for name in names):
            return []
        return [name for name in names if name.startswith(self.work) or self.results.fullmatch(name)]


def is_finished(folder: Path, own: OwnNames, what: str, remedy: str) -> bool:
    """Return whether a folder holds finished output; False if it is free for a new attempt.

    Args:
        folder: The output folder, which need not exist.
        own: The names that the command writes.
        what: The name of the folder in messages.
        remedy: What the user could do, as in "choose another run.dir".

    Raises:
        UserError: It is no folder, or without a record it holds anything but leftovers.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{what}: is not a folder; {remedy}")
    names = sorted(path.name for path in folder.iterdir())
    if own.record in names:
        return True
    foreign = sorted(set(names) - set(own.leftovers(names)))
    if foreign:
        raise UserError(
            f"{what}: the folder is in use by something else (it holds {', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}); {remedy}, or empty the folder"
        )
    return False


@contextmanager
def writing(folder: Path, what: str, busy: str, space: str, remedy: str) -> Iterator[None]:
    """Lock `folder` while the body runs. Create it if it is missing, and remove it again if it stays empty.

    Args:
        folder: The folder that the body writes.
        what: The name of the folder in messages.
        busy: What another command does that holds the folder, as in "preparing it".
        space: A sentence about the space needed, or "".
        remedy: Another thing that the user could do, as in "choose another run.dir".

    Raises:
        UserError: Another command holds the folder, the disk is full, or the folder cannot be written.
    """
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, f"{what}: another command is {busy} right now; wait for it to end"):
            try:
                yield
            finally:
                if created and not any(folder.glob("*")):
                    folder.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{what}: no space left on the disk; {space}Free some, or {remedy}") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{what}: cannot be written ({error}); {remedy}") from None
        raise


@contextmanager
def _locked(folder: Path, busy: str) -> Iterator[None]:
    """Lock the folder for this process. The lock ends with the process. Filesystems that cannot lock folders have no lock.

    A folder on an object storage has a lease (trainer/storage/objects/lease.py).
    """
    if isinstance(folder, ObjectPath):
        try:
            with leased(folder, f"process {os.getpid()} on {socket.gethostname()}"):
                yield
        except HeldError:
            raise UserError(busy) from None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(busy) from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def remove_from(folder: Path, names: Iterable[str], last: str) -> None:
    """Delete files and folders by name. Names that begin with `last` come last, because they mark the others as ours."""
    for name in sorted(names, key=lambda name: name.startswith(last)):
        path = folder / name
        if path.is_dir():
            remove_tree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
