"""The folder of checkpoints: commits are atomic, damaged checkpoints are never used, the best and the newest are kept."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import FILE_HASH, CheckpointManifest, StoredCheckpoint
from trainer.errors import CheckpointError
from trainer.storage.files import digest_of, hash_file

FILES = {"__0_0.distcp": b"weights of the first rank", "__1_0.distcp": bytes(range(40)), ".metadata": b"\x80\x04meta"}


def describe(step: int, attempt: Path) -> CheckpointManifest:
    files = {
        path.name: {FILE_HASH: hash_file(path, FILE_HASH), "num_bytes": path.stat().st_size}
        for path in sorted(attempt.iterdir())
    }
    return CheckpointManifest(
        step=step,
        position=step * 8,
        num_rows=100,
        identity={"run.seed": 1},
        config={"model": {"max_history": 5}},
        plan={"world_size": 2},
        dataset_digest="d" * 8,
        metrics={"best": {"value": 0.25, "step": step}},
        versions={"torch": "2"},
        files=files,
    )


def write_checkpoint(folder: Path, step: int) -> Path:
    attempt = checkpoint_folder.new_attempt(folder, step)
    for name, content in FILES.items():
        (attempt / name).write_bytes(content)
    return checkpoint_folder.commit(attempt, describe(step, attempt))


def steps_of(folder: Path) -> list[int]:
    return [checkpoint_folder.read(path).step for path in checkpoint_folder.committed(folder)]


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))


# Committing


def test_a_commit_renames_the_attempt_and_reads_back(tmp_path):
    folder = tmp_path / "checkpoints"
    attempt = checkpoint_folder.new_attempt(folder, 1000)
    assert attempt.name.startswith(".step_000001000.")
    (attempt / "weights").write_bytes(b"w")
    manifest = describe(1000, attempt)
    path = checkpoint_folder.commit(attempt, manifest)
    assert path == folder / "step_000001000"
    assert not attempt.exists()
    assert [p.name for p in folder.iterdir()] == ["step_000001000"]
    assert checkpoint_folder.verify(path) == manifest


def test_two_attempts_at_one_step_have_their_own_folders(tmp_path):
    assert checkpoint_folder.new_attempt(tmp_path, 5) != checkpoint_folder.new_attempt(tmp_path, 5)


def test_an_attempt_is_not_a_checkpoint(tmp_path):
    write_checkpoint(tmp_path, 1)
    attempt = checkpoint_folder.new_attempt(tmp_path, 2)
    (attempt / "weights").write_bytes(b"w")
    assert steps_of(tmp_path) == [1]
    actual, complaints = checkpoint_folder.newest(tmp_path)
    assert (actual.manifest.step, complaints) == (1, [])
    (tmp_path / "step_000000003").mkdir()  # without a manifest it was never committed
    assert steps_of(tmp_path) == [1]


def test_a_second_commit_of_a_step_replaces_the_first(tmp_path):
    path = write_checkpoint(tmp_path, 4)
    flip(path / ".metadata", 0)
    assert write_checkpoint(tmp_path, 4) == path
    assert checkpoint_folder.verify(path).step == 4
    assert len(list(tmp_path.iterdir())) == 1


def test_only_attempts_left_behind_are_removed(tmp_path):
    write_checkpoint(tmp_path, 1)
    checkpoint_folder.new_attempt(tmp_path, 2)
    checkpoint_folder.write_best(tmp_path, 1, "mrr", 0.5)
    checkpoint_folder.remove_attempts(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.json", "step_000000001"]


# Verification


def test_a_flipped_byte_in_any_file_is_detected(tmp_path):
    path = write_checkpoint(tmp_path, 1)
    for name, content in FILES.items():
        for place in range(len(content)):
            flip(path / name, place, bit=place % 8)
            with pytest.raises(CheckpointError) as caught:
                checkpoint_folder.verify(path)
            assert name in str(caught.value)
            assert "corrupt" in str(caught.value)
            flip(path / name, place, bit=place % 8)
    checkpoint_folder.verify(path)


def test_a_flipped_byte_in_the_manifest_is_detected_or_harmless(tmp_path):
    """A digit of the position is as much a part of the checkpoint as a weight; and damage must be a CheckpointError."""
    path = write_checkpoint(tmp_path, 1)
    manifest, size = checkpoint_folder.verify(path), (path / "manifest.json").stat().st_size
    wrong = []
    for place in range(size):
        flip(path / "manifest.json", place)
        try:
            if checkpoint_folder.verify(path) != manifest:
                wrong.append((place, "read as another manifest"))
        except CheckpointError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever else it is, is what this test is about
            wrong.append((place, repr(error)))
        flip(path / "manifest.json", place)
    assert wrong == [], f"{len(wrong)} of {size} places"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    path = write_checkpoint(tmp_path, 1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint_folder.verify(path)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_longer_file_is_named_with_its_sizes(tmp_path, name):
    path = write_checkpoint(tmp_path, 1)
    content = FILES[name]
    for changed in (content[:-1], b"", content + b"x"):
        (path / name).write_bytes(changed)
        with pytest.raises(CheckpointError, match=f"{name} has {len(changed)} bytes, the manifest says {len(content)}"):
            checkpoint_folder.verify(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"step": 1}', "\udcff"])
def test_a_manifest_that_cannot_be_read_is_an_error_that_names_it(tmp_path, content):
    path = write_checkpoint(tmp_path, 1)
    (path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"step_000000001: manifest\.json cannot be read"):
        checkpoint_folder.read(path)


def test_another_format_version_is_refused(tmp_path):
    path = write_checkpoint(tmp_path, 1)
    values = asdict(checkpoint_folder.read(path)) | {"format_version": 99}
    checkpoint_folder.write_json_atomically(path / "manifest.json", values)
    with pytest.raises(CheckpointError, match="format version 99, this shoal reads 2 and 3"):
        checkpoint_folder.verify(path)


def test_a_checkpoint_of_version_2_is_compared_with_its_sha256(tmp_path):
    path = write_checkpoint(tmp_path, 1)
    files = {name: {"sha256": hash_file(path / name), "num_bytes": len(content)} for name, content in FILES.items()}
    values = asdict(checkpoint_folder.read(path)) | {"format_version": 2, "files": files}
    checkpoint_folder.write_json_atomically(path / "manifest.json", {**values, "sha256": digest_of(values)})
    assert checkpoint_folder.verify(path).files == files
    flip(path / "__1_0.distcp", 3)
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp is corrupt \(its sha256 is not the manifest's\)"):
        checkpoint_folder.verify(path)


# The newest


def test_the_newest_checkpoint_that_verifies_is_used_and_newer_ones_are_named(tmp_path):
    for step in (5, 10, 200, 1000):
        write_checkpoint(tmp_path, step)
    assert steps_of(tmp_path) == [1000, 200, 10, 5]
    flip(tmp_path / "step_000001000" / "__0_0.distcp", 3)
    (tmp_path / "step_000000200" / "manifest.json").write_text("{")
    actual, complaints = checkpoint_folder.newest(tmp_path)
    assert actual.path == tmp_path / "step_000000010"
    assert actual.manifest.step == 10
    assert ["step_000001000" in complaints[0], "step_000000200" in complaints[1]] == [True, True]
    assert len(complaints) == 2


def test_nothing_verifies(tmp_path):
    assert checkpoint_folder.newest(tmp_path) == (None, [])
    assert checkpoint_folder.newest(tmp_path / "missing") == (None, [])
    flip(write_checkpoint(tmp_path, 1) / ".metadata", 0)
    actual, complaints = checkpoint_folder.newest(tmp_path)
    assert actual is None
    assert len(complaints) == 1


# Retention


def refuse_warning(text: str) -> None:
    pytest.fail(f"warned: {text}")


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        write_checkpoint(tmp_path, step)
    checkpoint_folder.write_best(tmp_path, 2, "ndcg@10", 0.5)
    deleted = checkpoint_folder.retire(tmp_path, keep=2, warn=refuse_warning)
    assert sorted(path.name for path in deleted) == ["step_000000001", "step_000000003"]
    assert steps_of(tmp_path) == [5, 4, 2]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    assert checkpoint_folder.retire(tmp_path, keep=2, warn=refuse_warning) == []


def test_a_best_checkpoint_among_the_newest_is_not_kept_in_addition(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    checkpoint_folder.write_best(tmp_path, 3, "mrr", 0.5)
    checkpoint_folder.retire(tmp_path, keep=1, warn=refuse_warning)
    assert steps_of(tmp_path) == [3]


def test_only_the_newest_are_kept_if_there_is_no_best(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    checkpoint_folder.retire(tmp_path, keep=5, warn=refuse_warning)
    assert steps_of(tmp_path) == [3, 2, 1]
    checkpoint_folder.retire(tmp_path, keep=1, warn=refuse_warning)
    assert steps_of(tmp_path) == [3]


@pytest.mark.parametrize("refused", ["rename", "rmtree"])
def test_a_checkpoint_that_cannot_be_deleted_is_a_warning_and_tried_again(tmp_path, monkeypatch, refused):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(39, "Directory not empty")

    warnings: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(*((Path, "rename", refuse) if refused == "rename" else (shutil, "rmtree", refuse)))
        checkpoint_folder.retire(tmp_path, 1, warnings.append)
    assert len(warnings) == 2
    assert all("Directory not empty" in text and "tried again" in text for text in warnings)
    assert steps_of(tmp_path)[0] == 3
    checkpoint_folder.retire(tmp_path, keep=1, warn=refuse_warning)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000003"]


# What to evaluate


def evaluated(folder: Path, warn: Any = lambda text: None) -> StoredCheckpoint:
    return checkpoint_folder.to_evaluate(folder, warn)


def test_the_best_checkpoint_is_evaluated_otherwise_the_newest(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    assert checkpoint_folder.read_best(tmp_path) is None
    assert evaluated(tmp_path).manifest.step == 3
    checkpoint_folder.write_best(tmp_path, 2, "ndcg@10", 0.5)
    assert checkpoint_folder.read_best(tmp_path) == {"step": 2, "metric": "ndcg@10", "value": 0.5}
    assert evaluated(tmp_path) == StoredCheckpoint(
        tmp_path / "step_000000002", checkpoint_folder.read(tmp_path / "step_000000002")
    )
    checkpoint_folder.write_best(tmp_path, 77, "ndcg@10", 0.5)  # its folder is gone
    assert evaluated(tmp_path).manifest.step == 3


def test_the_newest_replaces_a_best_that_does_not_verify(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    checkpoint_folder.write_best(tmp_path, 2, "ndcg@10", 0.5)
    warnings: list[str] = []
    assert evaluated(tmp_path, warnings.append).manifest.step == 2
    assert warnings == []
    flip(tmp_path / "step_000000002" / ".metadata", 1)
    assert evaluated(tmp_path, warnings.append).manifest.step == 3
    assert len(warnings) == 1
    assert "step_000000002: .metadata is corrupt" in warnings[0]
    assert warnings[0].endswith("; step_000000003 is used instead")


def test_no_checkpoint_to_evaluate_is_an_error_with_the_reason(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is none.*shoal train"):
        evaluated(tmp_path)
    flip(write_checkpoint(tmp_path, 1) / ".metadata", 0)
    with pytest.raises(CheckpointError, match=r"\.metadata is corrupt"):
        evaluated(tmp_path)


@pytest.mark.parametrize("use", [checkpoint_folder.read, checkpoint_folder.verify])
def test_a_missing_checkpoint_is_refused_with_a_list_of_the_others(tmp_path: Path, use: Any) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    with pytest.raises(CheckpointError, match=r"no such checkpoint; .* has step_000000020, step_000000010$"):
        use(tmp_path / "step_000000015")
    with pytest.raises(CheckpointError, match=r"no such checkpoint; .* has none$"):
        use(tmp_path / "elsewhere" / "step_000000015")
