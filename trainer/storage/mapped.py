"""Arrow tables and arrays in temporary files: their columns are pages of a file, which the system can drop from memory.

The files have no name and disappear with their arrays, except those of a `StoredArray`, which several processes map.
"""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.errors import UserError
from trainer.storage.files import naming, reserve_space
from trainer.storage.objects.paths import ObjectPath, copy_file

LEAST_BYTES = 1 << 20  # smaller arrays stay in memory
_COPIES = 16  # of stored objects that a process keeps as temporary files


def _local(folder: Path | None) -> Path:
    """Return a folder for files: that of temporary files (TMPDIR) for an object storage, or without a folder."""
    return Path(tempfile.gettempdir()) if folder is None or isinstance(folder, ObjectPath) else folder


@contextmanager
def _temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """Provide a file in a folder. An error of the body that names no file, as that of a failed write, names the folder."""
    with naming(folder), tempfile.NamedTemporaryFile(dir=folder, prefix=".shoal-") as file:
        yield file


def mapped_table(table: pa.Table, folder: Path | None = None) -> pa.Table:
    """Return a table with the same rows and as many record batches, in a temporary file."""
    with _temporary_file(_local(folder)) as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        with pa.memory_map(file.name) as source:  # the columns keep the mapping, not the file, open
            return pa.ipc.open_file(source).read_all()


@dataclass(frozen=True)
class StoredArray:
    """An array in a file. A process that receives this maps the file, so that all processes of a machine share its pages."""

    path: Path
    token: str
    """Differs each time a file is written."""

    @classmethod
    def write(cls, array: pa.Array, path: Path) -> "StoredArray":
        """Write an array into a local file."""
        batch = pa.record_batch([array], names=["value"])
        with naming(path), pa.ipc.new_file(str(path), batch.schema) as writer:
            writer.write_batch(batch)
        return cls(path, secrets.token_hex(8))

    def array(self) -> pa.Array:
        """Return the array, mapped. Of an object this process keeps one copy in a temporary file."""
        if isinstance(self.path, ObjectPath):
            return _copied(self)
        return _mapped_column(self.path)


@lru_cache(_COPIES)
def _copied(stored: StoredArray) -> pa.Array:
    with _temporary_file(_local(None)) as file:
        copy_file(stored.path, Path(file.name))
        return _mapped_column(Path(file.name))


def _mapped_column(path: Path) -> pa.Array:
    """Return the only column of an Arrow file of one record batch."""
    with naming(path), pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0).column(0)


def mapped_zeros(shape: tuple[int, ...], folder: Path | None = None) -> npt.NDArray[np.int64]:
    """Return an array of zeros in a temporary file; a small array is in memory."""
    num_bytes = 8 * int(np.prod(shape))
    if num_bytes < LEAST_BYTES:
        return np.zeros(shape, np.int64)
    with _temporary_file(_local(folder)) as file:
        reserve_space(file, num_bytes)
        return np.memmap(file, dtype=np.int64, mode="r+", shape=shape)  # the mapping outlives the open file


class ArrayWriter:
    """A writer of one array of integers or strings that grows at its end, in temporary files once it is large."""

    def __init__(self, kind: pa.DataType, folder: Path | None = None, most_values: int = 1 << 20) -> None:
        """Start without values.

        Args:
            kind: type of the values, an integer or string type of Arrow.
            folder: for the temporary files.
            most_values: values that are held in memory.
        """
        self._kind = kind
        self._folder = _local(folder)
        self._most_values = most_values
        self._held: list[pa.Array] = []
        self._num_held = 0
        self._files: list[IO[bytes]] = []  # of strings: offsets and bytes
        self._open_files = ExitStack()
        self._num_values = 0
        self._num_bytes = 0  # of strings

    def add(self, values: pa.Array) -> None:
        """Append values without nulls."""
        self._held.append(values)
        self._num_held += len(values)
        if self._num_held > self._most_values:
            self._write()

    def array(self) -> pa.Array:
        """Return all values, and end the growth."""
        if not self._files:
            return pa.concat_arrays([pa.array([], self._kind), *self._held])
        self._write()
        with self._open_files:
            buffers = [_mapped_buffer(file) for file in self._files]
        return pa.Array.from_buffers(self._kind, self._num_values, [None, *buffers])

    def _write(self) -> None:
        with naming(self._folder):
            self._write_held()

    def _write_held(self) -> None:
        is_text = pa.types.is_string(self._kind)
        if not self._files:
            for _ in range(1 + is_text):
                self._files.append(self._open_files.enter_context(_temporary_file(self._folder)))
            if is_text:
                self._files[0].write(np.zeros(1, np.int32).data)
        for values in self._held:
            self._num_values += len(values)
            if is_text:
                self._write_text(values)
            else:
                self._files[0].write(np.ascontiguousarray(values.to_numpy()).data)
        self._held = []
        self._num_held = 0

    def _write_text(self, values: pa.Array) -> None:
        _, offsets, text = values.buffers()
        if not len(values) or offsets is None:
            return
        bounds = np.frombuffer(offsets, np.int32, len(values) + 1, 4 * values.offset).astype(np.int64)
        ends = self._num_bytes + bounds[1:] - bounds[0]
        if ends[-1] > np.iinfo(np.int32).max:
            raise UserError(f"the text of {self._num_values:,} values is longer than 2 GB together; use hashed ids")
        self._files[0].write(ends.astype(np.int32).data)
        if text is not None:
            self._files[1].write(memoryview(text)[bounds[0] : bounds[-1]])
        self._num_bytes = int(ends[-1])


def _mapped_buffer(file: IO[bytes]) -> pa.Buffer:
    """Return the content of an open file; the buffer keeps the mapping, not the file, open."""
    file.flush()
    if not file.tell():
        return pa.py_buffer(b"")
    with pa.memory_map(file.name) as source:
        return source.read_buffer()
