"""Files of checkpoints: hashed while they are written in pieces, written again after passing errors, read without copies."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from tests.trainer.checkpoint.plain import assert_same, find, load_plain, save_plain, tensors_at
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import reader, writing
from trainer.checkpoint.folder import FILE_HASH
from trainer.errors import CheckpointError, NonFiniteWeightsError
from trainer.storage.files import hash_file
from trainer.storage.retries import NO_RETRIES, Retries

AT_ONCE = Retries(3, 0.5, sleep=lambda seconds: None)


class Disk:
    """A storage of which the next writes fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[int] = []
        self.opened = 0
        create_stream = FileSystem.create_stream
        disk = self

        @contextmanager
        def failing(files: FileSystem, path: Any, mode: str) -> Iterator[Any]:
            with create_stream(files, path, mode) as stream:
                if "w" in mode:
                    disk.opened += 1
                    stream.write(b"part of a file")
                    if disk.errors:
                        number = disk.errors.pop(0)
                        raise OSError(number, os.strerror(number))
                    stream.seek(0)
                    stream.truncate()
                yield stream

        monkeypatch.setattr(FileSystem, "create_stream", failing)


def test_large_tensors_are_hashed_and_written_in_pieces_and_flushed_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PIECE_BYTES", 1000)
    monkeypatch.setattr(writing, "FLUSH_BYTES", 2500)
    flushed: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: flushed.append(descriptor) or fdatasync(descriptor))
    tensors = tensors_at(1, num_rows=1000)
    path = save_plain(tmp_path, 1, tensors)
    assert flushed
    for name, entry in checkpoint_folder.verify(path).files.items():
        assert entry == {FILE_HASH: hash_file(path / name, FILE_HASH), "num_bytes": (path / name).stat().st_size}
    assert_same(load_plain(path, tensors), tensors)


@pytest.mark.parametrize("direct_bytes", [1, 1 << 30])
def test_tensors_are_read_directly_or_by_torch_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct_bytes: int
) -> None:
    tensors = tensors_at(1)
    tensors["dense.turned"] = torch.randn(4, 6).t()  # stored and loaded column by column
    path = save_plain(tmp_path, 1, tensors)
    direct: list[bool] = []
    read = reader.CheckpointReader._read_directly

    def noted(*arguments: Any) -> bool:
        direct.append(read(*arguments))
        return direct[-1]

    monkeypatch.setattr(reader, "DIRECT_BYTES", direct_bytes)
    monkeypatch.setattr(reader.CheckpointReader, "_read_directly", noted)
    assert_same(load_plain(path, tensors), tensors)
    assert len(direct) == 5
    assert any(direct) == (direct_bytes == 1)


def test_rows_of_a_stored_tensor_are_read_from_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a rank reads that holds another share of a table than the rank that wrote it."""
    monkeypatch.setattr(reader, "DIRECT_BYTES", 1)
    tensors = tensors_at(1)
    path = save_plain(tmp_path, 1, tensors)
    checkpoint = reader.CheckpointReader(path)
    metadata = checkpoint.read_metadata()
    checkpoint.set_up_storage_reader(metadata, True)
    for name, columns in (("table.item.weight", 8), ("table.item.weight", 5), ("table.item.accumulator", 0)):
        place = ([30, 0] if columns else [30], [41, columns] if columns else [41])
        wanted = torch.full(place[1], 7.0)
        index = next(index for index in metadata.storage_data if index.fqn == name)
        item = ReadItem(
            LoadItemType.TENSOR,
            index,
            torch.Size([0] * wanted.dim()),
            index,
            torch.Size(place[0]),
            torch.Size(place[1]),
        )
        planner = DefaultLoadPlanner()
        planner.resolve_tensor = lambda _, wanted=wanted: wanted  # type: ignore[method-assign]
        checkpoint.read_data(LoadPlan([item]), planner).wait()
        expected = tensors[name][30:71]
        assert torch.equal(wanted, expected[:, :columns] if columns else expected)


def test_an_error_that_passes_is_retried_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    disk.errors = [errno.EIO, errno.ETIMEDOUT]
    warnings: list[str] = []
    path = save_plain(tmp_path, 1, retries=AT_ONCE, warn=warnings.append)
    assert len(warnings) == 2
    assert "rank 0: [Errno 5] Input/output error; tried again after 0.5 s" in warnings[0]
    assert "tried again after 1 s" in warnings[1]
    assert disk.opened == 4
    assert_same(load_plain(path, tensors_at(1)), tensors_at(1))
    assert find(tmp_path)[1] == []


@pytest.mark.parametrize(
    ("error", "retries", "attempts", "cause"),
    [
        (errno.EIO, AT_ONCE, 4, "input/output error"),
        (errno.EIO, NO_RETRIES, 1, "input/output error"),
        (errno.EACCES, AT_ONCE, 1, "permission is denied"),
        (errno.ENOSPC, AT_ONCE, 1, "no space is left"),
    ],
)
def test_an_error_that_stays_ends_the_checkpoint_and_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, retries: Retries, attempts: int, cause: str
) -> None:
    save_plain(tmp_path, 1)
    disk = Disk(monkeypatch)
    disk.errors = [error] * 100
    with pytest.raises(CheckpointError, match=f"step_000000002: could not be written by rank 0: .*{cause}"):
        save_plain(tmp_path, 2, retries=retries)
    assert disk.opened == attempts
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]
    checkpoint, complaints = find(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.manifest.step, complaints) == (1, [])


def test_a_commit_that_fails_after_the_rename_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync_folder = checkpoint_folder.sync_folder
    errors = [OSError(errno.EIO, "Input/output error")]

    def failing(folder: Path) -> None:
        if errors:
            raise errors.pop()
        sync_folder(folder)

    monkeypatch.setattr(checkpoint_folder, "sync_folder", failing)
    path = save_plain(tmp_path, 1, retries=AT_ONCE)
    assert checkpoint_folder.verify(path).step == 1


class UnpicklableError(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


def test_an_error_that_cannot_be_pickled_is_sent_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> Any:
        raise UnpicklableError("of another library")

    monkeypatch.setattr(FileSystem, "create_stream", failing)
    with pytest.raises(CheckpointError, match="UnpicklableError: of another library"):
        save_plain(tmp_path, 1, retries=AT_ONCE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_single_value_that_is_not_finite_is_never_saved(tmp_path: Path, value: float) -> None:
    tensors = tensors_at(1)
    tensors["table.item.weight"][57, 3] = value
    with pytest.raises(NonFiniteWeightsError, match=r"table\.item\.weight"):
        save_plain(tmp_path, 1, tensors)
    assert list(tmp_path.iterdir()) == []
