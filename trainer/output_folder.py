"""A folder that one command writes at a time: held while it is written, and what goes wrong said in one message."""

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
    """Hold `folder` for the body; it is made where it is not, and removed if it was made and is empty in the end.

    Raises UserError if another command holds it, the disk is full, or it may not be written. what: how messages call the
    folder; busy: what the other command does; space: what to know of the space needed; remedy: what else could be done.
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
    """Held by the process, so it ends with the process. Filesystems that cannot lock folders go without."""
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
    """Delete files and folders; those that begin with `last` at the end, because they mark the others as ours."""
    for name in sorted(names, key=lambda name: name.startswith(last)):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
