"""Small files and renames survive a power failure, a failed write leaves nothing behind, and digests ignore order."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.checkpoint.test_folder import write_checkpoint
from trainer.storage import files as storage


class Disk:
    """A record of flushed files, and of names that were flushed with their folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed: set[int] = set()  # inodes of files
        self.unflushed: list[str] = []  # files that were renamed before they were flushed
        self.volatile: set[Path] = set()  # names that a power failure would undo
        fsync, replace, rename = os.fsync, Path.replace, Path.rename

        def flush(descriptor: int) -> None:
            fsync(descriptor)
            self.flushed.add(os.fstat(descriptor).st_ino)
            folder = Path(f"/proc/self/fd/{descriptor}").resolve()
            self.volatile = {path for path in self.volatile if path.parent != folder}

        def moved(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
            def work(path: Path, target: Path) -> Path:
                files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
                self.unflushed += [str(file) for file in files if file.stat().st_ino not in self.flushed]
                if path.is_dir() and path.stat().st_ino not in self.flushed:
                    self.unflushed.append(str(path))
                self.volatile.add(Path(target).resolve())
                return move(path, target)

            return work

        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(Path, "replace", moved(replace))
        monkeypatch.setattr(Path, "rename", moved(rename))


def test_a_small_file_and_its_rename_are_flushed(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    storage.write_json_atomically(tmp_path / "state.json", {"a": 1})
    assert (disk.unflushed, disk.volatile) == ([], set())


def test_a_commit_flushes_the_names_of_a_checkpoint_and_then_its_own(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    write_checkpoint(tmp_path / "checkpoints", 1)
    # The tensors' files are written here without torch, which flushes its own (trainer/checkpoint/test_tensors.py).
    assert {Path(name).name for name in disk.unflushed} <= {"__0_0.distcp", "__1_0.distcp", ".metadata"}
    assert disk.volatile == set()


def test_a_renamed_file_is_flushed_with_its_name(tmp_path, monkeypatch):
    (tmp_path / "part").write_bytes(b"rows")
    disk = Disk(monkeypatch)
    storage.replace_durably(tmp_path / "part", tmp_path / "part.parquet")
    assert (disk.unflushed, disk.volatile) == ([], set())


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", [(os, "fsync"), (Path, "replace")], ids=["flush", "rename"])
def test_a_small_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "state.json"
    storage.write_json_atomically(path, {"old": 1})
    monkeypatch.setattr(*broken, full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_json_atomically(path, {"new": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert "old" in path.read_text()


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert storage.digest_of({"a": 1, "b": [2, 3]}) == storage.digest_of({"b": [2, 3], "a": 1})
    assert storage.digest_of({"a": 1, "b": [2, 3]}) != storage.digest_of({"a": 1, "b": [3, 2]})
