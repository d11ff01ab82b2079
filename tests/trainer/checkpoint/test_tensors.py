"""Checkpoints through torch.distributed.checkpoint: exact at any world size and under any sharding, or refused."""

import errno
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sharding.config import TableConfig
from sharding.tables.fused import fused_tables
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from tests.sharding.tables.lookups import Lookup, ids_of, placed_lookup, step_of
from tests.trainer.loop.pieces import Pieces, assembled, check_equal, pieces_of
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.folder import FILE_HASH, CheckpointManifest
from trainer.checkpoint.keys import tensors_of
from trainer.checkpoint.writing import HashingFileSystem
from trainer.errors import CheckpointError
from trainer.storage.files import hash_file


@dataclass(frozen=True)
class Run:
    """A module with its optimizers on one rank."""

    module: Lookup
    sharded_model: nn.Module
    optimizers: Optimizers
    world: World

    def train(self, steps: range) -> None:
        for step in steps:
            self.optimizers.set_rate_factor(1.0)
            step_of(self.module, self.optimizers, self.world, ids_of(step, self.world.rank, self.world.world_size))

    def state(self) -> dict[str, Pieces]:
        """Return this rank's part of every tensor of model and optimizers, by the keys of the checkpoint. Not collective."""
        return {
            name: pieces_of(value) for name, value in tensors_of(self.sharded_model, ("item",), self.optimizers).items()
        }


def build(world: World, config: TableConfig, dense: type[torch.optim.Optimizer], seed: int) -> Run:
    torch.manual_seed(seed)
    module, sharded_model, plan = placed_lookup(world, config, seed)
    return Run(
        module, sharded_model, Optimizers(sharded_model, lambda p: dense(p, lr=0.01), {"item": config}, plan), world
    )


def describe(files: dict[str, dict[str, Any]]) -> CheckpointManifest:
    return CheckpointManifest(3, 24, 100, {}, {}, {}, "digest", {}, {}, files)


def train_and_save(
    world: World, folder: Path, config: TableConfig, dense: type[torch.optim.Optimizer]
) -> tuple[Path, dict[str, Pieces], dict[str, Pieces]]:
    """Return (path, the saved state, the state two steps later)."""
    run = build(world, config, dense, seed=1)
    run.train(range(3))
    saved = run.state()
    path = checkpoint_tensors.save(
        folder, tensors_of(run.sharded_model, ("item",), run.optimizers), world, describe, step=3
    )
    run.train(range(3, 5))
    return path, saved, run.state()


def load_and_train(
    world: World, folder: Path, config: TableConfig, dense: type[torch.optim.Optimizer]
) -> tuple[dict[str, Pieces], dict[str, Pieces]]:
    """Return (the state as loaded, the state two steps later). The initial weights differ from the saved ones."""
    run = build(world, config, dense, seed=2)
    result, complaints = checkpoint_tensors.find_to_resume(folder, world)
    assert result is not None
    assert complaints == []
    checkpoint_tensors.load(result, run.sharded_model, ("item",), run.optimizers)
    loaded = run.state()
    run.train(range(3, 5))
    return loaded, run.state()


ADAGRAD = {"dim": 8, "optimizer": "adagrad", "learning_rate": 0.1}
ROWWISE = {"dim": 8, "optimizer": "rowwise_adagrad", "learning_rate": 0.1}
SGD = {"dim": 8, "optimizer": "sgd", "learning_rate": 0.1}
RESHARDINGS = {
    f"{name}: {before} to {after}": (settings | {"sharding": before}, settings | {"sharding": after})
    for name, settings, pairs in (
        ("adagrad", ADAGRAD, ["row column", "row table", "column row", "data row", "column data", "data data"]),
        ("rowwise_adagrad", ROWWISE, ["row row", "table row", "data row", "table data"]),
        ("sgd", SGD, ["row data", "data column"]),
    )
    for before, after in (
        [{"data": "data_parallel"}.get(kind, f"{kind}_wise") for kind in pair.split()] for pair in pairs
    )
}


@pytest.mark.parametrize("resharding", RESHARDINGS)
def test_weights_and_optimizer_slots_are_exact_at_other_world_sizes_and_shardings(rank_pool, tmp_path, resharding):
    before, after = (TableConfig(**config) for config in RESHARDINGS[resharding])
    results = rank_pool.run(2, train_and_save, tmp_path, before, torch.optim.AdamW)
    assert {path for path, _, _ in results} == {tmp_path / "step_000000003"}
    saved = assembled([state for _, state, _ in results])
    of_table = {"table.item.weight"} | ({"table.item.accumulator"} if before.optimizer != "sgd" else set())
    of_dense = {
        f"dense.dense.{p}{slot}" for p in ("weight", "bias") for slot in ("", ".step", ".exp_avg", ".exp_avg_sq")
    }
    assert saved.keys() == of_table | of_dense
    assert [name for name, value in saved.items() if not value.any()] == []
    for world_size in (1, 3):
        results = rank_pool.run(world_size, load_and_train, tmp_path, after, torch.optim.AdamW)
        check_equal(assembled([state for state, _ in results]), saved)


@pytest.mark.parametrize("sharding", ["row_wise", "data_parallel"])
@pytest.mark.parametrize("config", [ADAGRAD, ROWWISE, SGD], ids=["adagrad", "rowwise", "sgd"])
def test_training_resumes_bit_identically_at_the_same_world_size(rank_pool, tmp_path, config, sharding):
    table = TableConfig(**config | {"sharding": sharding})
    uninterrupted = rank_pool.run(2, train_and_save, tmp_path, table, torch.optim.AdamW)
    continued = rank_pool.run(2, load_and_train, tmp_path, table, torch.optim.AdamW)
    check_equal(assembled([after for _, after in continued]), assembled([after for _, _, after in uninterrupted]))


def load_without_optimizers(world: World, folder: Path) -> dict[str, Pieces]:
    run = build(world, TableConfig(**ROWWISE | {"sharding": "row_wise"}), torch.optim.SGD, seed=2)
    result, _ = checkpoint_tensors.find_to_resume(folder, world)
    assert result is not None
    checkpoint_tensors.load(result, run.sharded_model, ("item",), None)
    weights = ("table.item.weight", "dense.dense.weight", "dense.dense.bias")
    return {name: value for name, value in run.state().items() if name in weights}


def test_evaluation_loads_the_weights_alone(rank_pool, tmp_path):
    results = rank_pool.run(
        2, train_and_save, tmp_path, TableConfig(**ADAGRAD | {"sharding": "row_wise"}), torch.optim.AdamW
    )
    saved = assembled([state for _, state, _ in results])
    loaded = assembled(rank_pool.run(1, load_without_optimizers, tmp_path))
    assert loaded.keys() == {"table.item.weight", "dense.dense.weight", "dense.dense.bias"}
    check_equal(loaded, {name: saved[name] for name in loaded})


def test_the_manifest_has_the_hash_of_every_file(rank_pool, tmp_path):
    path, _, _ = rank_pool.run(
        2, train_and_save, tmp_path, TableConfig(**ROWWISE | {"sharding": "row_wise"}), torch.optim.AdamW
    )[0]
    manifest = checkpoint_folder.verify(path)
    on_disk = {file.name: file for file in path.iterdir() if file.name != "manifest.json"}
    assert manifest.files.keys() == on_disk.keys()
    assert {name.split("_")[2] for name in on_disk if name.endswith(".distcp")} == {"0", "1"}  # a file of each rank
    for name, file in on_disk.items():
        assert manifest.files[name] == {FILE_HASH: hash_file(file, FILE_HASH), "num_bytes": file.stat().st_size}


def load_into_another(world: World, folder: Path, config: TableConfig) -> tuple[str, bool]:
    """Return the message of loading, and whether the weights are unchanged."""
    run = build(world, config, torch.optim.AdamW, seed=2)
    run.train(range(1))
    before = run.state()
    result, _ = checkpoint_tensors.find_to_resume(folder, world)
    assert result is not None
    try:
        checkpoint_tensors.load(result, run.sharded_model, ("item",), run.optimizers)
    except CheckpointError as error:
        name = "table.item.weight"
        same = all(
            torch.equal(a, b) for (_, a), (_, b) in zip(before[name].parts, run.state()[name].parts, strict=True)
        )
        return str(error), same
    return "", False


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ROWWISE, r"table\.item\.accumulator is 37 x 8 in the checkpoint and 37 in the model \(tables\.item\)"),
        (
            ADAGRAD | {"optimizer": "adam", "sharding": "data_parallel"},
            r"it has no table\.item\.\w+ \(tables\.item\); of this ",
        ),
    ],
    ids=["row-wise", "adam"],
)
def test_a_checkpoint_of_another_model_is_refused_on_every_rank_by_name(rank_pool, tmp_path, other, said):
    rank_pool.run(1, train_and_save, tmp_path, TableConfig(**ADAGRAD | {"sharding": "row_wise"}), torch.optim.AdamW)
    config = TableConfig(**{"sharding": "row_wise"} | other)
    for message, untouched in rank_pool.run(2, load_into_another, tmp_path, config):
        assert re.search(said, message), message
        assert "restore the config" in message
        assert untouched


# Updates that fused optimizers count


ADAM = {"dim": 8, "optimizer": "adam", "sharding": "row_wise"}


def as_adam(world: World, seed: int) -> Run:
    """Let a sharded table count as one of fused Adam, which exists on GPUs only. Adagrad updates it."""
    module, sharded_model, plan = placed_lookup(world, TableConfig(**ADAGRAD | {"sharding": "row_wise"}), seed)
    optimizers = Optimizers(sharded_model, lambda p: torch.optim.SGD(p, lr=0.01), {"item": TableConfig(**ADAM)}, plan)
    return Run(module, sharded_model, optimizers, world)


def save_counted(world: World, folder: Path, with_count: bool) -> None:
    run = as_adam(world, seed=1)
    run.train(range(5))
    state = tensors_of(run.sharded_model, ("item",), run.optimizers)
    if not with_count:
        del state["table.item.step"]

    def described(files: dict[str, dict[str, Any]]) -> CheckpointManifest:
        return replace(describe(files), step=7, metrics={"skipped_steps": 1})

    checkpoint_tensors.save(folder, state, world, described, step=7)


def load_counted(world: World, folder: Path) -> list[int]:
    """Return the number of updates from which the next look-up of each fused table counts."""
    run = as_adam(world, seed=2)
    result, _ = checkpoint_tensors.find_to_resume(folder, world)
    assert result is not None
    checkpoint_tensors.load(result, run.sharded_model, ("item",), run.optimizers)
    run.optimizers.count_lookups()
    return [int(count) for table in fused_tables(run.sharded_model) for count in (table.iter, table.iter_cpu)]


def test_a_checkpoint_holds_the_number_of_updates_of_fused_adam(rank_pool, tmp_path):
    rank_pool.run(2, save_counted, tmp_path, True)
    for world_size in (1, 3):
        for counts in rank_pool.run(world_size, load_counted, tmp_path):
            assert set(counts) == {5}


def test_a_checkpoint_without_that_number_counts_the_steps_that_were_not_skipped(rank_pool, tmp_path):
    rank_pool.run(2, save_counted, tmp_path, False)
    for counts in rank_pool.run(1, load_counted, tmp_path):
        assert set(counts) == {6}


# Failures while writing


def error_of_saving(world: World, folder: Path, broken: str) -> tuple[str, str]:
    """Return the type and text of the error that saving raised on this rank."""
    run = build(world, TableConfig(**ROWWISE | {"sharding": "row_wise"}), torch.optim.AdamW, seed=1)
    original = HashingFileSystem.create_stream

    def full_disk(self: Any, path: Any, mode: str) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def describe_in_vain(files: dict[str, dict[str, Any]]) -> CheckpointManifest:
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "disk of rank 1" and world.rank == 1:
        HashingFileSystem.create_stream = full_disk  # type: ignore[method-assign]
    try:
        state = tensors_of(run.sharded_model, ("item",), run.optimizers)
        checkpoint_tensors.save(folder, state, world, describe_in_vain if broken == "manifest" else describe, step=3)
    except Exception as error:  # noqa: BLE001 - the test compares it over ranks
        return type(error).__name__, str(error)
    finally:
        HashingFileSystem.create_stream = original  # type: ignore[method-assign]
    return "nothing", ""


def test_one_rank_that_cannot_write_is_an_error_on_all_ranks(rank_pool, tmp_path):
    errors = rank_pool.run(2, error_of_saving, tmp_path, "disk of rank 1")
    for name, text in errors:
        assert name == "CheckpointError"
        assert "rank 1: " in text
        assert "no space is left on the disk" in text
    assert checkpoint_folder.committed(tmp_path) == []


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_folder_that_cannot_be_written_is_an_error_on_all_ranks(rank_pool, tmp_path, world_size):
    """A file where the folder should be, since the tests may run as root, who may write anywhere."""
    (tmp_path / "checkpoints").write_text("in the way")
    errors = rank_pool.run(world_size, error_of_saving, tmp_path / "checkpoints", "nothing")
    assert [name for name, _ in errors] == ["CheckpointError"] * world_size
    assert all("checkpoints" in text for _, text in errors)


def test_a_commit_that_fails_is_an_error_on_all_ranks(rank_pool, tmp_path):
    errors = rank_pool.run(2, error_of_saving, tmp_path, "manifest")
    assert [name for name, _ in errors] == ["CheckpointError"] * 2
    assert checkpoint_folder.committed(tmp_path) == []


def find(world: World, folder: Path) -> tuple[str, list[str]]:
    result, complaints = checkpoint_tensors.find_to_resume(folder, world)
    return (result.path.name if result else "none"), complaints


def test_all_ranks_resume_from_the_checkpoint_that_the_first_rank_finds(rank_pool, tmp_path):
    assert rank_pool.run(2, find, tmp_path / "new") == [("none", [])] * 2
    rank_pool.run(1, train_and_save, tmp_path, TableConfig(**ADAGRAD | {"sharding": "row_wise"}), torch.optim.SGD)
    attempt = checkpoint_folder.new_attempt(tmp_path, 9)
    assert rank_pool.run(3, find, tmp_path) == [("step_000000003", [])] * 3
    assert not attempt.exists()


def load_as(world: World, folder: Path, config: TableConfig) -> None:
    run = build(world, config, torch.optim.SGD, seed=2)
    result, _ = checkpoint_tensors.find_to_resume(folder, world)
    assert result is not None
    saved = {"tables": {"item": {"optimizer": "adagrad"}}}
    result = replace(result, manifest=replace(result.manifest, config=saved))
    checkpoint_tensors.load(result, run.sharded_model, ("item",), run.optimizers)


def test_the_state_of_another_optimizer_is_refused_by_the_name_of_its_table(rank_pool, tmp_path):
    """The accumulators of both have the same name, and a different meaning."""
    rank_pool.run(1, train_and_save, tmp_path, TableConfig(**ADAGRAD | {"sharding": "row_wise"}), torch.optim.SGD)
    with pytest.raises(CheckpointError, match=r"state of adagrad for tables\.item, the config says sgd"):
        rank_pool.run(1, load_as, tmp_path, TableConfig(**SGD | {"sharding": "row_wise"}))


def test_a_start_removes_attempts_that_dead_processes_left(tmp_path):
    attempt = checkpoint_folder.new_attempt(tmp_path, 3)
    (attempt / "weights").write_bytes(b"half a file")
    found, complaints = checkpoint_tensors.find_to_resume(tmp_path, World(0, 1, torch.device("cpu")))
    assert (found, complaints) == (None, [])
    assert list(tmp_path.iterdir()) == []
