"""Reading a checkpoint from an untrusted source runs no code, even if its hashes are right."""

import dataclasses
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from sharding.config import TableConfig
from sharding.world import World
from tests.trainer.checkpoint.test_tensors import ADAGRAD, build, train_and_save
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.folder import FILE_HASH
from trainer.checkpoint.reader import METADATA_FILE, read_metadata
from trainer.errors import CheckpointError
from trainer.storage.files import hash_file
from trainer.storage.restricted_pickle import ForbiddenPickleError, restricted_load

TABLE = TableConfig(**ADAGRAD | {"sharding": "row_wise"})


class Attack:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def good(rank_pool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    return rank_pool.run(1, train_and_save, folder, TABLE, torch.optim.SGD)[0][0]


def copy_with(good: Path, folder: Path, change: Callable[[Path, Metadata], Any]) -> Path:
    """Copy a checkpoint with the metadata that `change` returns and a manifest that matches."""
    attempt = checkpoint_folder.new_attempt(folder, 3)
    for file in good.iterdir():
        if file.name != "manifest.json":
            (attempt / file.name).write_bytes(file.read_bytes())
    (attempt / METADATA_FILE).write_bytes(pickle.dumps(change(attempt, read_metadata(good))))
    files = {f.name: {FILE_HASH: hash_file(f, FILE_HASH), "num_bytes": f.stat().st_size} for f in attempt.iterdir()}
    return checkpoint_folder.commit(attempt, dataclasses.replace(checkpoint_folder.read(good), files=files))


def resume(world: World, folder: Path) -> str:
    run = build(world, TABLE, torch.optim.SGD, seed=2)
    found, complaints = checkpoint_tensors.find_to_resume(folder, world)
    assert found is not None, complaints
    try:
        checkpoint_tensors.load(found, run.sharded_model, ("item",), run.optimizers)
    except CheckpointError as error:
        return str(error)
    return ""


def metadata_that_runs(trace: Path) -> Callable[[Path, Metadata], Any]:
    return lambda attempt, metadata: Attack(trace)


def metadata_with_more(trace: Path) -> Callable[[Path, Metadata], Any]:
    return lambda attempt, metadata: dataclasses.replace(metadata, planner_data=Attack(trace))


def tensor_as_pickle(trace: Path) -> Callable[[Path, Metadata], Any]:
    """Mark a tensor as bytes, which torch unpickles without restriction."""

    def change(attempt: Path, metadata: Metadata) -> Metadata:
        key = "dense.dense.bias"
        [index] = [index for index in metadata.storage_data if index.fqn == key]
        info, content = metadata.storage_data.pop(index), io.BytesIO()
        torch.save(Attack(trace), content)
        file = attempt / info.relative_path
        start = file.stat().st_size
        file.write_bytes(file.read_bytes() + content.getvalue())
        index = dataclasses.replace(index)
        object.__setattr__(index, "offset", None)
        metadata.storage_data[index] = dataclasses.replace(info, offset=start, length=len(content.getvalue()))
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        return metadata

    return change


@pytest.mark.parametrize("attack", [metadata_that_runs, metadata_with_more, tensor_as_pickle])
def test_a_checkpoint_that_would_run_code_is_refused(rank_pool, good, tmp_path, attack):
    trace = tmp_path / "trace"
    path = copy_with(good, tmp_path / "checkpoints", attack(trace))
    checkpoint_folder.verify(path)  # its hashes are right
    messages = rank_pool.run(2, resume, tmp_path / "checkpoints")
    assert not trace.exists()
    for message in messages:
        assert "Nothing in it was run or loaded" in message
        assert str(path) in message
    with pytest.raises(CheckpointError, match="Nothing in it was run"):
        read_metadata(path)
    assert not trace.exists()


def test_tensors_outside_the_checkpoint_are_refused(rank_pool, good, tmp_path):
    def elsewhere(attempt: Path, metadata: Metadata) -> Metadata:
        for index, info in metadata.storage_data.items():
            metadata.storage_data[index] = dataclasses.replace(info, relative_path=f"../{info.relative_path}")
        return metadata

    copy_with(good, tmp_path, elsewhere)
    assert "outside its folder" in rank_pool.run(1, resume, tmp_path)[0]


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps([1] * 9)[:-3]]
)
def test_damaged_metadata_is_one_message(good, tmp_path, content):
    path = copy_with(good, tmp_path, lambda attempt, metadata: metadata)
    (path / METADATA_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.metadata (cannot be read|is not the metadata)"):
        read_metadata(path)


def test_metadata_is_read_as_torch_reads_it(good):
    with (good / METADATA_FILE).open("rb") as file:
        assert read_metadata(good) == pickle.load(file)


def test_an_attribute_of_an_admitted_name_is_not_admitted():
    direct = pickle.dumps(Attack(Path("never")), protocol=4)
    data = direct.replace(b"\x8c\x05posix\x94\x8c\x05mkdir", b"\x8c\x02os\x94\x8c\x08sys.exit")
    with pytest.raises(ForbiddenPickleError, match=r"os\.sys\.exit"):
        restricted_load(io.BytesIO(data), lambda module, name: True)
