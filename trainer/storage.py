"""Hashes of values and files, and small files written so that a reader never sees half of one."""

import errno
import hashlib
import json
import os
from contextlib import suppress
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
