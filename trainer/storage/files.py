"""Hashes of values and files, atomic writes of small files, and explanations of disk errors.

It works on local paths and on object storages (trainer/storage/objects), where an object is written whole instead of renamed.
"""

import errno
import hashlib
import io
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol, cast

import xxhash

from trainer.storage.objects.paths import ObjectPath, copy_file

_PART_BYTES = 8 << 20
_OBJECT_PART_BYTES = 32 << 20  # of an object: a multiple of the ranges that are in flight


class Hash(Protocol):
    """A hash of bytes that arrive in parts."""

    def update(self, data: Any, /) -> object:
        """Hash further bytes. Python's lock is released meanwhile."""

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far."""


HASHES: dict[str, Callable[[], Hash]] = {"sha256": hashlib.sha256, "xxh3_128": xxhash.xxh3_128}
"""The hashes of files by name. xxh3_128 detects damage and is as fast as memory; only sha256 also withstands forgery."""


def digest_of(values: Any) -> str:
    """Return the sha256 of plain values. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path, kind: str = "sha256") -> str:
    """Return a hash of a file, of a kind in HASHES. Of a large one, a part is read while the part before it is hashed."""
    digest = HASHES[kind]()
    if isinstance(path, ObjectPath):
        with path.open("rb") as stream:
            return _hash_in_parts(cast(IO[bytes], stream), digest, _OBJECT_PART_BYTES)
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size <= _PART_BYTES:
            digest.update(file.read())
            return digest.hexdigest()
        return _hash_in_parts(file, digest)


def _hash_in_parts(file: IO[bytes], digest: Hash, part_bytes: int = _PART_BYTES) -> str:
    buffers = [bytearray(part_bytes), bytearray(part_bytes)]
    # Both sides release Python's lock, so a disk and a processor work at the same time.
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as hasher:
        hashed: Future[object] | None = None
        for number in itertools.count():
            part = memoryview(buffers[number % 2])
            num_bytes = cast(io.RawIOBase, file).readinto(part)
            if hashed is not None:
                hashed.result()  # then the other buffer may be overwritten
            if not num_bytes:
                break
            hashed = hasher.submit(digest.update, part[:num_bytes])
    return digest.hexdigest()


def write_json_atomically(path: Path, values: Any) -> None:
    """Write plain values as JSON, as `write_text_atomically` does."""
    write_text_atomically(path, json.dumps(values, indent=1))


def write_text_atomically(path: Path, text: str) -> None:
    """Write a temporary file, flush it to the disk and rename it, so that a reader sees the old file or the new one.

    The temporary file is removed if it could not be written.
    """
    with renamed_when_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def renamed_when_whole(path: Path) -> Iterator[Path]:
    """Provide a temporary path to write to, which is renamed to `path` at the end. It is removed after an error.

    For an object, the temporary path is local, and is uploaded at the end.
    """
    if isinstance(path, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="shoal-upload-") as folder:
            local = Path(folder) / path.name
            yield local
            upload(local, path)
        return
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
def written_locally(path: Path) -> Iterator[Path]:
    """Provide a local path to write to: `path` itself, or for an object one that is uploaded at the end."""
    if not isinstance(path, ObjectPath):
        yield path
        return
    with renamed_when_whole(path) as local:
        yield local


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an OSError of the body that names none, as that of a failed write."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


_REFUSALS = {
    errno.ENOSPC: "no space is left on the disk. Free some",
    errno.EDQUOT: "the disk quota is used up. Free some of it",
    errno.EFBIG: "the file would exceed the size limit. Raise the limit (ulimit -f)",
    errno.EIO: "the disk reports an input/output error. Check the disk",
    errno.EROFS: "the filesystem is read-only. Make it writable",
    errno.EACCES: "permission is denied. Correct the permissions",
    errno.EPERM: "the operation is not permitted. Correct the permissions",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "it is a folder",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.EREMOTEIO: "the storage does not answer. Check the network, and the endpoint of the storage",
    errno.ESTALE: "the network filesystem has lost the file. Mount it again",
}


def disk_refusal(error: OSError) -> str | None:
    """Return a message for an error of the disk: the file, the cause and what to do. None if the user cannot fix the error."""
    cause = refusal_cause(error)
    if cause is None:
        return None
    where = str(error.filename) if error.filename is not None else "a file"
    credentials = (
        " Check the credentials in the environment too" if "://" in where and error.errno == errno.EACCES else ""
    )
    return f"{where}: cannot be read or written: {cause}{credentials}"


def refusal_cause(error: BaseException) -> str | None:
    """Return the cause of an error of the disk and what to do, or None for all other errors."""
    cause = _REFUSALS.get(error.errno or 0) if isinstance(error, OSError) else None
    if cause is None:
        return None
    return (
        f"{cause}, or choose another folder (run.dir, or the command's own option). "
        "Everything finished before is intact. Then run the same command again"
    )


def reserve_space(file: IO[bytes], num_bytes: int) -> None:
    """Give an open file its space on the disk, where the system can. Raises OSError if the disk is full.

    Otherwise a full disk would end the process when it writes to a mapping of the file.
    """
    if sys.platform == "linux":
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def upload(local: Path, path: ObjectPath) -> None:
    """Write a local file as an object."""
    # The bytes of a small file go into one request.
    if local.stat().st_size <= _PART_BYTES:
        path.write_bytes(local.read_bytes())
    else:
        copy_file(local, path)


def replace_durably(temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk, rename it, and flush the rename. An object is copied, then deleted at its old name."""
    if isinstance(path, ObjectPath):
        if isinstance(temporary, ObjectPath):
            temporary.copy_to(path)
        else:
            upload(temporary, path)
        temporary.unlink()
        return
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk. Without it, a power failure may undo a rename although its file was flushed."""
    if isinstance(folder, ObjectPath):
        return  # an object is durable when its writer has closed it
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return  # a folder that is writable but not readable cannot be flushed
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some filesystems cannot flush folders
            raise
    finally:
        os.close(descriptor)
