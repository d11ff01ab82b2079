"""Checkpoints that are written while training continues: of the moment of the request, one at a time, whole or not at all."""

import json
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from sharding.config import TableConfig
from sharding.world import World
from tests.support.rank_pool import RankPool
from tests.trainer.checkpoint.test_tensors import ADAGRAD, build
from tests.trainer.loop.pieces import Pieces, assembled, check_equal
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.background import BackgroundSaver, Saved
from trainer.checkpoint.folder import CheckpointManifest
from trainer.checkpoint.keys import tensors_of
from trainer.checkpoint.staging import Staging
from trainer.errors import CheckpointError, NonFiniteWeightsError, ReplicasDifferError
from trainer.fault_points import VARIABLE
from trainer.storage.retries import Retries

TABLE = TableConfig(**ADAGRAD | {"sharding": "row_wise"})


def described(step: int) -> Any:
    def describe(files: dict[str, dict[str, Any]]) -> CheckpointManifest:
        return CheckpointManifest(step, 24, 100, {}, {}, {}, "digest", {}, {}, files)

    return describe


def save_and_train_on(world: World, folder: Path, in_background: bool) -> tuple[list[dict[str, Pieces]], list[Saved]]:
    """Save after 2, 3 and 4 steps without a pause. Return the states of these moments."""
    run = build(world, TABLE, torch.optim.AdamW, seed=1)
    committed: list[int] = []
    saver = BackgroundSaver(folder, world, in_background, committed.append)
    states = []
    for step in range(2, 5):
        run.train(range(0 if step == 2 else step - 1, step))
        states.append(run.state())
        saver.save(tensors_of(run.sharded_model, ("item",), run.optimizers), described(step), step)
    run.train(range(4, 7))
    saver.finish()
    assert committed == [2, 3, 4]
    return states, saver.collect()


def loaded(world: World, folder: Path, step: int) -> dict[str, Pieces]:
    run = build(world, TABLE, torch.optim.AdamW, seed=2)
    path = folder / checkpoint_folder.name_of(step)
    stored = checkpoint_folder.StoredCheckpoint(path, checkpoint_folder.verify(path))
    checkpoint_tensors.load(stored, run.sharded_model, ("item",), run.optimizers)
    return run.state()


def test_a_checkpoint_is_of_the_moment_of_its_request(rank_pool: RankPool, tmp_path: Path) -> None:
    results = rank_pool.run(2, save_and_train_on, tmp_path / "beside", True)
    at_once = rank_pool.run(2, save_and_train_on, tmp_path / "at once", False)
    for place, step in enumerate((2, 3, 4)):
        expected = assembled([states[place] for states, _ in results])
        check_equal(assembled(rank_pool.run(2, loaded, tmp_path / "beside", step)), expected)
        beside, other = (
            checkpoint_folder.verify(tmp_path / name / checkpoint_folder.name_of(step)).files
            for name in ("beside", "at once")
        )
        assert [beside[name] for name in sorted(beside) if name.endswith(".distcp")] == [
            other[name] for name in sorted(other) if name.endswith(".distcp")
        ]
    assert [saved.step for saved in results[0][1]] == [saved.step for saved in at_once[0][1]] == [2, 3, 4]
    for saved in results[0][1]:
        assert 0.0 < saved.stall_seconds <= saved.seconds
        assert saved.num_bytes == sum(file.stat().st_size for file in saved.path.iterdir())
    assert not list((tmp_path / "beside").glob(".*"))


def errors_of(world: World, folder: Path, faults: Path | None) -> list[str]:
    """Save twice: with a fault, or with a weight that is not finite on one rank, and again without."""
    run = build(world, TABLE, torch.optim.AdamW, seed=1)
    run.train(range(2))
    saver = BackgroundSaver(folder, world, True)
    state = tensors_of(run.sharded_model, ("item",), run.optimizers)
    broken = dict(state)
    if faults is None and world.rank == 1:
        broken["dense.dense.bias"] = torch.full((8,), float("nan"))
    with mock.patch.dict(os.environ, {} if faults is None else {VARIABLE: str(faults)}):
        saver.save(broken, described(2), 2)
        messages = []
        try:
            saver.finish()
        except (CheckpointError, NonFiniteWeightsError) as error:
            messages.append(f"{type(error).__name__}: {error}")
    assert saver.error is None
    assert not list(folder.glob("step_*"))
    saver.save(state, described(3), 3)
    saver.finish()
    return messages


def test_an_error_of_one_rank_is_raised_on_all_and_leaves_nothing(rank_pool: RankPool, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps([{"name": "full", "point": "writing", "rank": 1, "step": 2, "action": "no space"}]))
    for given, expected in (
        (faults, "CheckpointError: .*written by rank 1: no space"),
        (None, "NonFinite.*dense.bias"),
    ):
        folder = tmp_path / str(given is None)
        results = rank_pool.run(2, errors_of, folder, given)
        for messages in results:
            assert len(messages) == 1

            assert re.match(expected, messages[0]), messages
        assert [path.name for path in folder.iterdir()] == ["step_000000003"]


def differing(world: World, folder: Path) -> str:
    run = build(world, TABLE, torch.optim.AdamW, seed=1)
    run.train(range(1))
    state = tensors_of(run.sharded_model, ("item",), run.optimizers)
    if world.rank == 1:
        state["dense.dense.bias"] = state["dense.dense.bias"] + 1e-7
    with pytest.raises(ReplicasDifferError) as caught:
        checkpoint_tensors.save(folder, state, world, described(1), 1)
    return str(caught.value)


def test_copies_of_dense_weights_that_differ_are_named_and_not_saved(rank_pool: RankPool, tmp_path: Path) -> None:
    for message in rank_pool.run(2, differing, tmp_path / "checkpoints"):
        assert re.match("the copies .* after step 1: dense.dense.bias differs: rank 0 has .*, rank 1 has ", message)
    assert not (tmp_path / "checkpoints").exists()


def newest(world: World, folder: Path) -> tuple[int | None, list[str]]:
    checkpoint, complaints = checkpoint_tensors.find_to_resume(folder, world)
    return None if checkpoint is None else checkpoint.manifest.step, complaints


def test_a_flipped_byte_in_any_file_is_found_by_ranks_that_share_the_work(rank_pool: RankPool, tmp_path: Path) -> None:
    rank_pool.run(2, save_and_train_on, tmp_path, False)
    damaged = tmp_path / checkpoint_folder.name_of(4)
    for name in checkpoint_folder.read(damaged).files:
        content = (damaged / name).read_bytes()
        (damaged / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        for step, complaints in rank_pool.run(2, newest, tmp_path):
            assert step == 3
            assert len(complaints) == 1
            assert f"{name} is corrupt" in complaints[0]
        (damaged / name).write_bytes(content)
    assert rank_pool.run(2, newest, tmp_path) == [(4, []), (4, [])]


def test_copies_are_reused_and_do_not_change_with_the_tensors() -> None:
    staging = Staging(torch.device("cpu"))
    state = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    first = staging.copy(state)
    state["a"] += 1.0
    assert first["a"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    memory = first["a"].data_ptr()
    second = staging.copy({**state, "b": torch.ones(3)})
    assert second["a"].data_ptr() == memory
    assert second["a"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert second["b"].shape == (3,)


def test_copies_that_do_not_fit_into_memory_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    staging = Staging(torch.device("cpu"))
    state = {"a": torch.zeros(1000)}
    for free, fits in ((8_000, True), (7_999, False)):
        monkeypatch.setattr(
            "trainer.checkpoint.staging.psutil.virtual_memory", lambda free=free: mock.Mock(available=free)
        )
        assert staging.fits(state) is fits
    staging.copy(state)
    assert staging.fits(state)


def save_slowly(world: World, folder: Path, faults: Path) -> tuple[list[dict[str, Pieces]], list[Saved]]:
    """Save after 2 and 3 steps, where the first checkpoint is still being written when the second one is requested."""
    run = build(world, TABLE, torch.optim.AdamW, seed=1)
    saver = BackgroundSaver(folder, world, True)
    states = []
    with mock.patch.dict(os.environ, {VARIABLE: str(faults)}):
        for step in (2, 3):
            run.train(range(0 if step == 2 else 2, step))
            states.append(run.state())
            assert not list(folder.glob("step_*"))  # the first one is not committed before the second one is requested
            saver.save(tensors_of(run.sharded_model, ("item",), run.optimizers), described(step), step)
        run.train(range(3, 5))
        saver.finish()
    return states, saver.collect()


def test_a_save_during_another_one_waits_for_it_and_both_are_of_their_moment(
    rank_pool: RankPool, tmp_path: Path
) -> None:
    faults = tmp_path / "faults.json"
    slow = {"name": "slow", "point": "writing", "rank": 1, "step": 2, "action": "slow", "seconds": 1.0}
    faults.write_text(json.dumps([slow]))
    results = rank_pool.run(2, save_slowly, tmp_path / "checkpoints", faults)
    for place, step in enumerate((2, 3)):
        expected = assembled([states[place] for states, _ in results])
        check_equal(assembled(rank_pool.run(2, loaded, tmp_path / "checkpoints", step)), expected)
    first, second = results[0][1]
    # The wait is a stall of training by the checkpoint that was waited for.
    assert 0.5 < first.stall_seconds <= first.seconds + 0.5
    assert second.step == 3


def retried(world: World, folder: Path, faults: Path, retries: Retries) -> tuple[list[str], str]:
    """Save once with input errors of one rank's disk. Return the warnings and the error."""
    run = build(world, TABLE, torch.optim.AdamW, seed=1)
    warnings: list[str] = []
    saver = BackgroundSaver(folder, world, True, retries=retries, warn=warnings.append)
    with mock.patch.dict(os.environ, {VARIABLE: str(faults)}):
        saver.save(tensors_of(run.sharded_model, ("item",), run.optimizers), described(2), 2)
        try:
            saver.finish()
        except CheckpointError as error:
            return warnings, str(error)
    return warnings, ""


def test_input_errors_of_one_rank_are_retried_and_said_by_the_first(rank_pool: RankPool, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    fault = {"point": "writing", "rank": 1, "step": 2, "action": "input error"}
    faults.write_text(json.dumps([{**fault, "name": "once"}, {**fault, "name": "twice"}]))
    first, second = rank_pool.run(2, retried, tmp_path / "some", faults, Retries(2, 0.01))
    assert len(first[0]) == 2
    assert all("step_000000002: rank 1: " in text and "tried again" in text for text in first[0])
    assert (first[1], second) == ("", ([], ""))
    for path in tmp_path.glob("*.happened"):
        path.unlink()
    for _, error in rank_pool.run(2, retried, tmp_path / "too many", faults, Retries(1, 0.01)):
        assert "could not be written by rank 1: the disk reports an input/output error" in error
    assert not list((tmp_path / "too many").iterdir())
