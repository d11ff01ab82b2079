"""Writing of a rank's files of a checkpoint: hashed and flushed while they are written, and repeated after passing errors.

torch's writer decides what is in a file. Here its bytes are hashed just before they are written, and a second thread flushes what
is written so far, so that processor and disk work at the same time.
"""

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
from trainer.checkpoint.folder import FILE_HASH
from trainer.storage.files import HASHES
from trainer.storage.objects.paths import ObjectPath
from trainer.storage.objects.streams import ObjectWriter
from trainer.storage.retries import NO_RETRIES, Retries

PIECE_BYTES = 1 << 20  # hashed and then written at a time: the processor's cache still holds them for the second
FLUSH_BYTES = 64 << 20  # written between two flushes


class HashingStream(io.RawIOBase):
    """A stream that hashes what is written through it. Sequential: it cannot seek."""

    def __init__(self, stream: IO[bytes], flusher: ThreadPoolExecutor) -> None:
        self._stream = stream
        self._is_object = isinstance(
            stream, ObjectWriter
        )  # which is durable when it is closed, and cannot be flushed before
        self._flusher = flusher
        self._flushed: Future[None] | None = None
        self._unflushed = 0
        self.hash = HASHES[FILE_HASH]()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        """Hash and write bytes, and return their number. Both are done when this returns, so the memory may change then."""
        view = memoryview(data).cast("B")
        self.num_bytes += view.nbytes
        for begin in range(0, view.nbytes, PIECE_BYTES):
            piece = view[begin : begin + PIECE_BYTES]
            self.hash.update(piece)
            self._stream.write(piece)
            self._flush_later(piece.nbytes)
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
            self._flushed = self._flusher.submit(os.fdatasync, self._stream.fileno())

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
            # The thread ends before the file is closed.
            with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as flusher:
                hashing = HashingStream(cast(IO[bytes], stream), flusher)
                yield hashing
                hashing.finish()
            self._on_file()
            entry = {FILE_HASH: hashing.hash.hexdigest(), "num_bytes": hashing.num_bytes}
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
            # The files have a hash. The checksums of torch's format would take as long again, and nothing reads them.
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
