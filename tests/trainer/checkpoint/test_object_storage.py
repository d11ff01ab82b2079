"""Checkpoints on an object storage: data objects first, the manifest last, nothing renamed, and retention the other way round."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from tests.support.object_store import Store
from tests.trainer.checkpoint.plain import assert_same, find, load_plain, save_plain, tensors_at
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.errors import CheckpointError
from trainer.storage.objects.paths import path_of
from trainer.storage.retries import Retries


@pytest.fixture
def folder(store: Store) -> Path:
    return path_of("s3://bucket/run/checkpoints")


def stored(path: Path) -> StoredCheckpoint:
    return StoredCheckpoint(path, checkpoint_folder.verify(path))


def test_a_checkpoint_is_written_and_loaded(folder: Path, store: Store) -> None:
    path = save_plain(folder, 7)
    assert_same(load_plain(stored(path).data, tensors_at(7)), tensors_at(7))
    found, complaints = find(folder)
    assert (found, complaints) == (stored(path), [])
    assert checkpoint_folder.size_of(path) == sum(e["num_bytes"] for e in stored(path).manifest.files.values())
    writes = [line for line in store.log if line.startswith("put")]
    assert writes[-1] == "put bucket/run/checkpoints/step_000000007/manifest.json"  # the commit
    assert not any("step_" in line and "manifest" not in line for line in store.log if line.startswith("delete all"))


def test_the_files_are_those_of_a_local_checkpoint(folder: Path, store: Store, tmp_path: Path) -> None:
    local = save_plain(tmp_path, 7)
    there = stored(save_plain(folder, 7))
    assert sorted(path.name for path in there.data.iterdir()) == sorted(
        path.name for path in local.iterdir() if path.name != "manifest.json"
    )
    assert (there.data / "__0_0.distcp").read_bytes() == (local / "__0_0.distcp").read_bytes()


@pytest.mark.parametrize("nth", range(4))
def test_a_process_that_dies_at_any_write_leaves_the_checkpoint_before(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """The process dies: nothing after that write happens, no clean-up either. The next one resumes and saves again."""
    save_plain(folder, 1)
    before = store.put
    written = 0

    class Killed(BaseException):
        pass

    def put(key: str, data: bytes) -> None:
        nonlocal written
        if written == nth:
            raise Killed
        written += 1
        before(key, data)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", put)
        patch.setattr(store, "delete_file", put)
        patch.setattr("trainer.checkpoint.tensors.remove_tree", lambda *_, **__: None)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - torch wraps it where its own code runs
            save_plain(folder, 2)
    found, complaints = find(folder)
    assert found is not None
    assert (found.manifest.step, complaints) == (1, [])
    assert [name for name in store.names("bucket/run/checkpoints/") if name.startswith("step_000000002")] == []
    path = save_plain(folder, 2)
    assert_same(load_plain(stored(path).data, tensors_at(2)), tensors_at(2))


def test_a_late_writer_of_a_dead_attempt_changes_nothing(folder: Path, store: Store) -> None:
    path = save_plain(folder, 2)
    late = checkpoint_folder.new_attempt(folder, 2)
    (late / "__0_0.distcp").write_bytes(b"of a rank that did not hear of the restart")
    assert stored(path).manifest.step == 2
    found, _ = find(folder)  # the start of a training removes what does not belong to a commit
    assert found == stored(path)
    assert not late.exists()
    assert stored(path).manifest.step == 2


def damage_manifest(store: Store, key: str) -> None:
    data, moment = store.objects[f"{key}/manifest.json"]
    store.objects[f"{key}/manifest.json"] = (data[:-9], moment)


def flip_a_byte(store: Store, key: str) -> None:
    name = next(name for name in store.objects if name.startswith(key) and name.endswith(".distcp"))
    data, moment = store.objects[name]
    store.objects[name] = (data[:100] + bytes([data[100] ^ 1]) + data[101:], moment)


def lose_a_file(store: Store, key: str) -> None:
    del store.objects[next(name for name in store.objects if name.startswith(key) and name.endswith(".metadata"))]


@pytest.mark.parametrize("damage", [damage_manifest, flip_a_byte, lose_a_file])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    folder: Path, store: Store, damage: Callable[[Store, str], None]
) -> None:
    for step in (1, 2):
        save_plain(folder, step)
    damage(store, "bucket/run/checkpoints/step_000000002")
    found, (complaint,) = find(folder)
    assert found is not None
    assert found.manifest.step == 1
    assert "step_000000002" in complaint
    path = save_plain(folder, 2)  # trained again
    assert_same(load_plain(stored(path).data, tensors_at(2)), tensors_at(2))
    kept = {name.split("/")[0] for name in store.names("bucket/run/checkpoints/step_000000002/")}
    assert kept == {"manifest.json", stored(path).data.name}  # nothing of the damaged one is left


def test_retention_deletes_the_manifest_first_and_keeps_the_best(folder: Path, store: Store) -> None:
    for step in (1, 2, 3, 4):
        save_plain(folder, step)
    checkpoint_folder.write_best(folder, 2, "loss", 0.5)
    store.log.clear()
    warnings: list[str] = []
    retired = checkpoint_folder.retire(folder, 1, warnings.append)
    assert ([path.name for path in retired], warnings) == (["step_000000003", "step_000000001"], [])
    assert [path.name for path in checkpoint_folder.committed(folder)] == ["step_000000004", "step_000000002"]
    assert checkpoint_folder.to_evaluate(folder, print).manifest.step == 2
    deleted = [line for line in store.log if line.startswith("delete") and "step_000000003" in line]
    assert deleted[0] == "delete bucket/run/checkpoints/step_000000003/manifest.json"
    assert not any("step_000000003" in name for name in store.names())


def test_a_retention_that_was_interrupted_is_finished_later(folder: Path, store: Store) -> None:
    for step in (1, 2):
        save_plain(folder, step)
    del store.objects["bucket/run/checkpoints/step_000000001/manifest.json"]
    assert [path.name for path in checkpoint_folder.committed(folder)] == ["step_000000002"]
    assert checkpoint_folder.retire(folder, 2, lambda text: None) == []
    assert not any("step_000000001" in name for name in store.names())


def test_a_storage_that_does_not_answer_is_tried_again(folder: Path, store: Store) -> None:
    attempts: list[str] = []
    before = store.put

    def put(key: str, data: bytes) -> None:
        if key.endswith(".distcp") and len(attempts) < 2:
            attempts.append(key)
            raise OSError("AWS Error SLOW_DOWN during UploadPart operation: Please reduce your request rate.")
        before(key, data)

    store.put = put  # type: ignore[method-assign]
    warnings: list[str] = []
    path = save_plain(folder, 5, retries=Retries(3, 0.0), warn=warnings.append)
    assert len(warnings) == 2
    assert "SLOW_DOWN" in warnings[0]
    assert_same(load_plain(stored(path).data, tensors_at(5)), tensors_at(5))


def test_a_storage_that_does_not_answer_is_no_reason_to_go_back(folder: Path, store: Store) -> None:
    for step in (1, 2):
        save_plain(folder, step)
    head = store.get_file_info

    def get_file_info(paths: list[str]) -> list[pafs.FileInfo]:
        if any("step_000000002" in path and path.endswith(".distcp") for path in paths):
            raise OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached")
        return head(paths)

    store.get_file_info = get_file_info  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match=r"step_000000002: cannot be read: the storage does not answer"):
        find(folder)


def test_a_storage_that_refuses_a_checkpoint_is_named(folder: Path, store: Store) -> None:
    def put(key: str, data: bytes) -> None:
        raise OSError("AWS Error ACCESS_DENIED during PutObject operation: Access Denied.")

    store.put = put  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="could not be written by rank 0: permission is denied"):
        save_plain(folder, 5)


def test_the_manifest_holds_no_credentials(folder: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    save_plain(folder, 1)
    assert not any(b"hush-hush" in data for data, _ in store.objects.values())
    json.loads(store.objects["bucket/run/checkpoints/step_000000001/manifest.json"][0])
