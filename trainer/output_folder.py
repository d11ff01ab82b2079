"""An output folder that one command writes at a time, with one message for each thing that can go wrong."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import UserError


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
                if created and not any(folder.iterdir()):
                    folder.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{what}: no space left on the disk; {space}Free some, or {remedy}") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{what}: cannot be written ({error}); {remedy}") from None
        raise


@contextmanager
def _locked(folder: Path, busy: str) -> Iterator[None]:
    """Lock the folder for this process. The lock ends with the process. Filesystems that cannot lock folders have no lock."""
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
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
