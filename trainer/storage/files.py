"""Hashes of values and files, small files written so that a reader never sees half of one, and what a disk refuses."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def digest_of(values: Any) -> str:
    """sha256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json_atomically(path: Path, values: Any) -> None:
    write_text_atomically(path, json.dumps(values, indent=1))


def write_text_atomically(path: Path, text: str) -> None:
    """Write, flush to the disk, rename: a reader sees the old file or the new one, never half of one.

    A temporary file that could not be written is removed.
    """
    with renamed_when_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def renamed_when_whole(path: Path) -> Iterator[Path]:
    """Give the body a path to write to, which becomes `path` when it ends; after an error nothing is left of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            replace_durably(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an error of the operating system that names none: a failed write does not say what it wrote to."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


_REFUSALS = {
    errno.ENOSPC: "no space is left on the disk. Free some",
    errno.EDQUOT: "the disk quota is used up. Free some of it",
    errno.EFBIG: "the file would be larger than is allowed. Raise the limit (ulimit -f)",
    errno.EIO: "the disk reports an error of its own. Check it",
    errno.EROFS: "the filesystem is read-only. Make it writable",
    errno.EACCES: "permission is denied. Correct the permissions",
    errno.EPERM: "the operation is not permitted. Correct the permissions",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "it is a folder",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ESTALE: "the network filesystem has lost the file. Mount it again",
}


def disk_refusal(error: OSError) -> str | None:
    """Return what a disk refused, the cause and what to do, for people; None if the error is none that they can mend."""
    cause = refusal_cause(error)
    if cause is None:
        return None
    where = str(error.filename) if error.filename is not None else "a file"
    return f"{where}: cannot be read or written: {cause}"


def refusal_cause(error: BaseException) -> str | None:
    """Return the cause and what to do if a disk refused something; None for all other errors."""
    cause = _REFUSALS.get(error.errno or 0) if isinstance(error, OSError) else None
    if cause is None:
        return None
    return (
        f"{cause}, or choose another folder (run.dir, or the command's own option). "
        "What was finished before is intact; then run the same command again"
    )


def replace_durably(temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk, rename it, and flush the rename."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk: without it a power failure may undo a rename whose file was flushed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # a folder may be writable and yet not readable, and then there is no way to flush it
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # filesystems that cannot flush folders
            raise
    finally:
        os.close(descriptor)
