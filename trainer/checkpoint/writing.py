"""Writing of a rank's files of a checkpoint: hashed and flushed while they are written, and repeated after passing errors.

torch's writer decides what is in a file. Here its bytes are hashed by a second thread while they are written, and a third one
flushes what is written so far, so that processor and disk work at the same time.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture
from torch.utils.serialization import config as serialization_config

from sharding.errors import picklable
from trainer.storage.objects.paths import ObjectPath
from trainer.storage.objects.streams import ObjectWriter
from trainer.storage.retries import NO_RETRIES, Retries

LARGE_BYTES = 1 << 20  # from this size on, a second thread pays off
PIECE_BYTES = 16 << 20  # written at a time
FLUSH_BYTES = 64 << 20  # written between two flushes


class HashingStream(io.RawIOBase):
    """A stream that hashes what is written through it. Sequential: it cannot seek."""

    def __init__(self, stream: IO[bytes], threads: ThreadPoolExecutor) -> None:
        self._stream = stream
        self._is_object = isinstance(
            stream, ObjectWriter
        )  # which is durable when it is closed, and cannot be flushed before
        self._threads = threads
        self._flushed: Future[None] | None = None
        self._unflushed = 0
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        """Write and hash bytes, and return their number. Both are done when this returns, so the memory may change then."""
        view = memoryview(data).cast("B")
        self.num_bytes += view.nbytes
        if view.nbytes < LARGE_BYTES:
            self.sha256.update(view)
            self._stream.write(view)
            self._flush_later(view.nbytes)
            return view.nbytes
        hashed = self._threads.submit(self.sha256.update, view)
        try:
            for begin in range(0, view.nbytes, PIECE_BYTES):
                piece = view[begin : begin + PIECE_BYTES]
                self._stream.write(piece)
                self._flush_later(piece.nbytes)
        finally:
            hashed.result()
        return view.nbytes

    def finish(self) -> None:
        """Wait for flushes that were begun. Raises their errors."""
        if self._flushed is not None:
            self._flushed.result()

    def _flush_later(self, num_bytes: int) -> None:
        """Begin a flush after enough bytes. At the end, little is left for the one that torch waits for."""
        self._unflushed += num_bytes
        if self._is_object:
            return
        if self._unflushed >= FLUSH_BYTES and (self._flushed is None or self._flushed.done()):
            self.finish()
            self._unflushed = 0
            self._flushed = self._threads.submit(os.fdatasync, self._stream.fileno())

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


class HashingFileSystem(FileSystem):
    """The file system of torch's writer, which records the hash and size of every file that this rank writes."""

    def __init__(self, on_file: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.written: dict[str, dict[str, Any]] = {}
        self._on_file = on_file

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with super().create_stream(path, mode) as stream:
            if "w" not in mode:
                yield stream
                return
            # The threads end before the file is closed.
            with ThreadPoolExecutor(2, thread_name_prefix="checkpoint") as threads:
                hashing = HashingStream(cast(IO[bytes], stream), threads)
                yield hashing
                hashing.finish()
            self._on_file()
            entry = {"sha256": hashing.sha256.hexdigest(), "num_bytes": hashing.num_bytes}
            self.written[Path(path).name] = entry

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        if isinstance(path, ObjectPath):  # torch renames its metadata, which is not the commit
            path.copy_to(cast(ObjectPath, new_path))
            path.unlink()
        else:
            super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class CheckpointWriter(FileSystemWriter):
    """torch's writer of a checkpoint folder, with hashes, early flushes and retries.

    `retried` lists the errors that passed, for warnings.
    """

    def __init__(
        self, attempt: Path, on_file: Callable[[], None] = lambda: None, retries: Retries = NO_RETRIES
    ) -> None:
        is_local = not isinstance(attempt, ObjectPath)
        super().__init__(attempt, single_file_per_rank=True, sync_files=is_local, thread_count=1)
        self.retried: list[str] = []
        self._retries = retries
        self._hashing = HashingFileSystem(on_file)
        self.fs = self._hashing

    @property
    def written(self) -> dict[str, dict[str, Any]]:
        """The hash and size of every file that this rank wrote."""
        return self._hashing.written

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """Write this rank's file. A further attempt writes it from the beginning."""

        def write() -> TorchFuture[list[WriteResult]]:
            # The files have a sha256. The checksums of torch's format would take as long again, and nothing reads them.
            with cast(Any, serialization_config).patch("save.compute_crc32", False):
                return super(CheckpointWriter, self).write_data(plan, planner)

        try:
            return self._retries.run(write, self._note)
        except Exception as error:
            raise picklable(error) from error

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write torch's metadata."""
        self._retries.run(lambda: super(CheckpointWriter, self).finish(metadata, results), self._note)

    def storage_meta(self) -> StorageMeta | None:
        """Return what torch's metadata says of the folder. The class of an object's path is not admitted there."""
        path = self.checkpoint_id
        return StorageMeta(str(path) if isinstance(path, ObjectPath) else path, self.save_id)

    def _note(self, error: OSError, wait: float) -> None:
        self.retried.append(f"{error}; tried again after {wait:g} s")
