"""Readers and writers of objects, and their errors as the operating system would name them.

A large read is split into ranges, of which several are in flight: one connection alone does not use the bandwidth of a storage.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from trainer.errors import first_line

if TYPE_CHECKING:
    import pyarrow.fs as pafs

COPY_BYTES = 16 << 20  # of one write
RANGE_BYTES = 8 << 20  # of one request
RANGES_IN_FLIGHT = 8

_NOISE = r"^\[Errno \d+\] | \(Request ID: [^)]*\)|\. Detail: .*$"  # in messages of pyarrow
# pyarrow gives errors of object stores no number. The names are those of the AWS SDK, of HTTP and of the other SDKs.
_NUMBERS = (
    (
        errno.EACCES,
        r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|CLIENT_TOKEN|MISSING_AUTH|EXPIRED|Unauthorized|HTTP status 40[13]",
    ),
    (errno.ENOSPC, r"QUOTA|INSUFFICIENT|HTTP status 507"),
    (errno.ENOENT, r"NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|HTTP status 404"),
    (
        errno.EREMOTEIO,
        r"NETWORK_CONNECTION|TIMEOUT|[Tt]imed? ?out|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|Unavailable"
        r"|HTTP status 5\d\d|[Cc]onnection (refused|reset)|UNKNOWN",
    ),
)


@contextmanager
def translated(path: PurePath) -> Iterator[None]:
    """Give errors of an object storage the number and path that an error of a local disk has.

    Errors of local paths, and those of another cause, such as a damaged file, stay as they are.
    """
    try:
        yield
    except OSError as error:
        number = number_of(error)
        if "://" not in str(path) or number is None or "://" in str(error.filename):
            raise
        text = re.sub(_NOISE, "", error.strerror or first_line(error))
        raise OSError(number, text, str(path)) from error


def number_of(error: BaseException) -> int | None:
    """Return the number that an error of the operating system of the same cause has; None if the cause is unknown."""
    if not isinstance(error, OSError):
        return None
    return error.errno or next((number for number, text in _NUMBERS if re.search(text, first_line(error))), None)


@lru_cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(RANGES_IN_FLIGHT, thread_name_prefix="ranges")


class ObjectReader(io.RawIOBase):
    """A reader of an object, at any place."""

    def __init__(self, path: PurePath, filesystem: pafs.FileSystem, key: str) -> None:
        super().__init__()
        self._path = path
        with translated(path):
            self._file: Any = filesystem.open_input_file(key)
            self.num_bytes: int = self._file.size()
        self._place = 0

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the current place, and return the number of bytes. 0: the end."""
        view = memoryview(buffer).cast("B")[: max(0, self.num_bytes - self._place)]
        first = self._place

        def read(begin: int) -> None:
            piece = view[begin : begin + RANGE_BYTES]
            data = self._file.read_at(len(piece), first + begin)
            if len(data) != len(piece):
                raise OSError(errno.EIO, "the object ended within a range that it had before", str(self._path))
            piece[:] = data

        with translated(self._path):
            begins = range(0, len(view), RANGE_BYTES)
            if len(begins) > 1:
                list(_threads().map(read, begins))
            elif begins:
                read(0)
        self._place += len(view)
        return len(view)

    def readall(self) -> bytes:
        """Return all bytes from the current place."""
        data = bytearray(max(0, self.num_bytes - self._place))
        self.readinto(data)
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place, and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.num_bytes}[whence]
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        """Return the current place."""
        return self._place

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the object."""
        if not self.closed:
            self._file.close()
        super().close()


class ObjectWriter(io.RawIOBase):
    """A writer of a new object, from its beginning to its end. The object appears when this is closed."""

    def __init__(self, path: PurePath, filesystem: pafs.FileSystem, key: str) -> None:
        super().__init__()
        self._path = path
        self._num_bytes = 0
        with translated(path):
            self._stream: Any = filesystem.open_output_stream(key, compression=None)

    def write(self, data: Any) -> int:
        """Write bytes, and return their number."""
        view = memoryview(data).cast("B")
        with translated(self._path):
            for begin in range(0, view.nbytes, COPY_BYTES):
                self._stream.write(view[begin : begin + COPY_BYTES])
        self._num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Return the number of bytes so far."""
        return self._num_bytes

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Complete the object. Raises OSError if the storage did not accept it."""
        if not self.closed:
            try:
                with translated(self._path):
                    self._stream.close()
            finally:
                super().close()
