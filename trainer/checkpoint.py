"""Saving and loading of tensors through torch.distributed.checkpoint, hashed while they are written.

A checkpoint holds the model under "model.<name>" and every optimizer slot under "optim.<parameter>.<slot>": flat keys with tensors
only, which torch reshards exactly when the number of ranks or the sharding differs at loading.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

from sharding.optimizers import Optimizers
from sharding.ranks import Ranks
from trainer import checkpoint_folder
from trainer.checkpoint_folder import CheckpointManifest, Found
from trainer.errors import CheckpointError


class _HashingStream(io.RawIOBase):
    """Passes writes through and hashes them on the way. Sequential: refuses to seek."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.num_bytes += memoryview(data).nbytes
        return self._stream.write(data)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


class _HashingFileSystem(FileSystem):
    """The file system of torch's writer, remembering the hash of every file that this rank writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with super().create_stream(path, mode) as stream:
            if "w" not in mode:
                yield stream
                return
            hashing = _HashingStream(cast(IO[bytes], stream))
            yield hashing
            entry = {"sha256": hashing.sha256.hexdigest(), "num_bytes": hashing.num_bytes}
            self.written[Path(path).name] = entry

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


def tensors(placed: nn.Module, optimizers: Optimizers | None) -> dict[str, Any]:
    """The flat state to save, or to load into: tensors share their memory with the model and the optimizers."""
    state = {f"model.{name}": value for name, value in placed.state_dict().items()}
    if optimizers is not None:
        for parameter, slots in optimizers.combined.state_dict()["state"].items():
            state.update({f"optim.{parameter}.{slot}": value for slot, value in slots.items()})
    return state


def save(
    folder: Path,
    state: dict[str, Any],
    ranks: Ranks,
    describe: Callable[[dict[str, dict[str, Any]]], CheckpointManifest],
    step: int,
) -> Path:
    """Write `state` into a fresh attempt and commit it. Collective; `describe` turns the files' hashes into the manifest.

    Raises CheckpointError on every rank if any rank could not write.
    """
    attempt = ranks.on_first(lambda: _explained(folder, lambda: checkpoint_folder.new_attempt(folder, step)))
    writer = FileSystemWriter(attempt, single_file_per_rank=True, sync_files=True, thread_count=1)
    hashing = _HashingFileSystem()
    writer.fs = hashing
    try:
        dcp.save(state, storage_writer=writer)
    except CheckpointException as error:
        raise CheckpointError(f"checkpoint {attempt}: could not be written ({_first_cause(error)})") from None
    files: dict[str, dict[str, Any]] = {}
    for written in ranks.gather_objects(hashing.written):
        files.update(cast(dict[str, dict[str, Any]], written))
    return ranks.on_first(lambda: _explained(attempt, lambda: checkpoint_folder.commit(attempt, describe(files))))


def load(found: Found, placed: nn.Module, optimizers: Optimizers | None) -> None:
    """Load a verified checkpoint into the model and, if given, the optimizers, resharding as needed. Collective.

    Raises CheckpointError if a tensor is missing or does not fit.
    """
    if optimizers is not None:
        optimizers.materialize_dense_state()
    state = tensors(placed, optimizers)
    try:
        dcp.load(state, storage_reader=dcp.FileSystemReader(found.path))
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {found.path}: does not fit the model ({_first_cause(error)}); was it made with another config?"
        ) from None
    plain = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    with torch.no_grad():
        placed.load_state_dict(plain)


def find_to_resume(folder: Path, ranks: Ranks) -> tuple[Found | None, list[str]]:
    """The newest checkpoint that verifies, chosen by the first rank for all. Collective."""

    def look() -> tuple[Found | None, list[str]]:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint_folder.remove_attempts(folder)
        return checkpoint_folder.newest(folder)

    return ranks.on_first(look)


def _explained(path: Path, work: Callable[[], Path]) -> Path:
    try:
        return work()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: could not be written ({error})") from None


def _first_cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        rank, (cause, _) = next(iter(failures.items()))
        return f"rank {rank}: {cause}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
