"""A learning rate that is far too large ends a run with one message, and no checkpoint holds what it broke."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

from sharding.tables.optimizers import Optimizers
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.reader import read_metadata
from trainer.config.job import Channel, Job
from trainer.errors import UserError
from trainer.loop.state import Best
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_dataset(folder / "dataset")
    return folder / "dataset"


def job_in(run_dir: Path, dataset: Path, **sections: Any) -> Job:
    early = {"early_stopping": {"metric": "ndcg@10", "patience": 50}, "evaluate_every_epochs": 1}
    train = {**early, **sections.pop("train", {})}
    return tiny_job(run_dir, dataset, train=train, **sections)


def run(
    world: World, job: Job, break_at: int | None = None, seconds_of_write: float = 0.0
) -> tuple[str, list[dict[str, Any]]]:
    """Return the error that training raised, and the events that it sent.

    Args:
        world: All ranks.
        job: The run.
        break_at: Before this step the rates become too large.
        seconds_of_write: How much longer the writing of each checkpoint takes.
    """
    events: list[dict[str, Any]] = []
    try:
        training = Training(job, world, Channel(send=events.append, stop_requested=lambda: False))
        if seconds_of_write:
            training.checkpoints.before_write = lambda: time.sleep(seconds_of_write)
        whole = training._train

        def train(item: Any) -> Any:
            if break_at is not None and training.state.step == break_at:
                training.optimizers._base_rates = [1e38 for _ in training.optimizers._base_rates]
            return whole(item)

        training._train = train  # type: ignore[method-assign]
        training.run()
    except UserError as error:
        return str(error), events
    return "", events


def values_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in read_metadata(checkpoint).state_dict_metadata.items()
    }
    load_tensors(state, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return state


def assert_finite(run_dir: Path) -> None:
    for path in checkpoint_folder.committed(run_dir / "checkpoints"):
        for name, value in values_in(path).items():
            assert value.isfinite().all(), f"{path.name} {name}"


TABLES = {
    "row_wise": {"sharding": "row_wise", "optimizer": "rowwise_adagrad"},
    "data_parallel": {"sharding": "data_parallel", "optimizer": "rowwise_adagrad"},
    "table_wise": {"sharding": "table_wise", "optimizer": "rowwise_adagrad"},
}


@pytest.mark.parametrize("every_steps", [1, None])
@pytest.mark.parametrize("table", TABLES)
def test_a_rate_that_breaks_a_table_is_named_and_nothing_is_saved(rank_pool, dataset, tmp_path, table, every_steps):
    tables = {"item": {"dim": 8, "learning_rate": float("3.4e38"), **TABLES[table]}}
    job = job_in(tmp_path / "run", dataset, tables=tables, checkpoint={"every_steps": every_steps})
    for message, events in rank_pool.run(2, run, job):
        assert "tables.item hold values that are not finite" in message
        assert "tables.item.learning_rate = 3.4e+38" in message
        assert "another run.dir" in message
        assert [event["kind"] for event in events if event["kind"] in ("validation", "checkpoint")] == []
    assert checkpoint_folder.committed(tmp_path / "run" / "checkpoints") == []
    assert checkpoint_folder.read_best(tmp_path / "run" / "checkpoints") is None


@pytest.mark.parametrize("seconds_of_write", [0.0, 2.0])
def test_the_first_broken_update_is_named_and_the_checkpoint_before_it_is_intact(
    rank_pool, dataset, tmp_path, seconds_of_write
):
    job = job_in(tmp_path / "run", dataset, checkpoint={"every_steps": 4, "keep": 9})
    for message, _ in rank_pool.run(2, run, job, 9, seconds_of_write):
        assert "became so in the update of step 10" in message
        assert "The newest checkpoint, step_000000008, is from before" in message
    assert_finite(tmp_path / "run")
    newest, complaints = checkpoint_folder.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert (newest.manifest.step, complaints) == (8, [])
    kinds = [row["kind"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert kinds.count("validation") == 1  # after the first epoch of 8 steps
    # The rerun continues from there.
    assert [message for message, _ in rank_pool.run(2, run, job)] == ["", ""]


def test_a_broken_last_update_is_neither_evaluated_nor_saved(rank_pool, dataset, tmp_path):
    job = job_in(tmp_path / "run", dataset, train={"max_steps": 9})
    for message, events in rank_pool.run(2, run, job, 8):
        assert "became so in the update of step 9" in message
        assert [event["step"] for event in events if event["kind"] == "validation"] in ([8], [])
    assert_finite(tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adagrad"])
def test_a_rate_of_dense_weights_that_breaks_them_is_named(rank_pool, dataset, tmp_path, optimizer):
    train = {"optimizer": optimizer, "learning_rate": float("3.4e38"), "ema_decay": 0.9}
    job = job_in(tmp_path / "run", dataset, train=train, checkpoint={"every_steps": 1})
    for message, events in rank_pool.run(2, run, job):
        assert "train.learning_rate = 3.4e+38" in message
        assert not any(event["best"]["value"] for event in events if event["kind"] == "validation")
    assert_finite(tmp_path / "run")


def test_a_model_without_a_finite_loss_is_never_the_best(rank_pool, dataset, tmp_path):
    """Its weights are finite, and so large that no score is."""
    tables = {"item": {"dim": 8, "learning_rate": float("3e37"), "optimizer": "sgd"}}
    train = {"max_nonfinite_steps": 100, "max_steps": 9}
    job = job_in(tmp_path / "run", dataset, tables=tables, train=train)
    _, events = rank_pool.run(2, run, job)[0]
    validations = [event for event in events if event["kind"] == "validation"]
    assert len(validations) == 2
    assert all(event["best"]["value"] is None for event in validations)
    assert checkpoint_folder.read_best(tmp_path / "run" / "checkpoints") is None
    assert_finite(tmp_path / "run")


def break_losses(world: World, job: Job, steps: int, as_before: bool = False) -> list[str]:
    """Train while no loss is finite. as_before: save only the state that torch has created, as earlier versions did."""
    events: list[dict[str, Any]] = []
    whole = Optimizers.materialize_dense_state
    if as_before:
        Optimizers.materialize_dense_state = lambda self: None  # type: ignore[method-assign]
    try:
        asked: list[None] = []

        def stop() -> bool:
            asked.append(None)
            return len(asked) >= steps

        training = Training(job, world, Channel(send=events.append, stop_requested=stop))
        loss = type(training.built.model).loss
        training.built.model.loss = lambda rows, batch: loss(training.built.model, rows, batch) * float("nan")
        training.run()
    finally:
        Optimizers.materialize_dense_state = whole  # type: ignore[method-assign]
    return [event["text"] for event in events if event["kind"] == "warning"]


@pytest.mark.parametrize("allowed", [0, 2])
def test_every_skipped_step_is_recorded_also_the_one_that_ends_the_run(rank_pool, dataset, tmp_path, allowed):
    train = {"max_nonfinite_steps": allowed, "sample_log": True}
    job = job_in(tmp_path / "run", dataset, train=train)
    messages = rank_pool.run(2, message_of_broken_losses, job)
    assert all(f"in {allowed + 1} steps in a row" in message for message in messages)
    skipped = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "skipped"]
    logs = [(tmp_path / "run" / f"sample_log/rank-{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    trained = [[json.loads(line)["row_ids"] for line in lines] for lines in zip(*logs, strict=True)]
    assert [row["step"] for row in skipped] == list(range(1, allowed + 2))
    assert [row["row_ids"] for row in skipped] == trained


def message_of_broken_losses(world: World, job: Job) -> str:
    try:
        break_losses(world, job, 100)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("as_before", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adagrad", "sgd"])
def test_a_checkpoint_from_before_the_first_applied_step_is_resumed(rank_pool, dataset, tmp_path, optimizer, as_before):
    train = {"optimizer": optimizer, "max_steps": 6, "weight_decay": 0.1 if optimizer in ("adamw", "lion") else 0.0}
    tables = {"item": {"dim": 8, "learning_rate": 0.1, "sharding": "data_parallel", "optimizer": "adam"}}
    job = job_in(tmp_path / "run", dataset, train=train, tables=tables)
    warnings = rank_pool.run(2, break_losses, job, 3, as_before)[0]
    assert len(warnings) == 1
    assert "step 1 was skipped" in warnings[0]
    [path] = checkpoint_folder.committed(tmp_path / "run" / "checkpoints")
    if not as_before:
        steps = [value for name, value in values_in(path).items() if name.endswith(".step")]
        assert all(not value.any() for value in steps)
    assert [message for message, _ in rank_pool.run(2, run, job)] == ["", ""]


def test_a_broken_checkpoint_of_an_earlier_version_names_the_remedy(rank_pool, dataset, tmp_path, monkeypatch):
    job = job_in(tmp_path / "run", dataset, checkpoint={"every_steps": 4, "keep": 9})
    rank_pool.run(1, save_broken, job)
    for message, _ in rank_pool.run(2, run, job):
        assert "holds values that are not finite (table.item.weight)" in message
        assert "Delete this folder" in message
    shutil.rmtree(checkpoint_folder.committed(tmp_path / "run" / "checkpoints")[0])
    assert [message for message, _ in rank_pool.run(2, run, job)] == ["", ""]


def save_broken(world: World, job: Job) -> None:
    """Train 5 steps, break a row, and save it as earlier versions did."""
    from trainer.checkpoint import tensors as checkpoint_tensors

    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) >= 5

    training = Training(job, world, Channel(send=lambda event: None, stop_requested=stop))
    whole = training._train

    def train(item: Any) -> Any:
        result = whole(item)
        if training.state.step == 5:
            weight = training.checkpoints.tensors()["table.item.weight"].local_shards()[0].tensor
            weight.detach()[0, 0] = float("nan")
        return result

    training._train = train  # type: ignore[method-assign]
    check = checkpoint_tensors.broken_tensors
    checkpoint_tensors.broken_tensors = lambda state, world: []
    try:
        training.run()
    finally:
        checkpoint_tensors.broken_tensors = check


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_is_never_the_best(value):
    for smaller in (False, True):
        assert Best().after(value, 3, smaller) == Best(None, 0, 1)
        assert Best(0.5, 2, 0).after(value, 3, smaller) == Best(0.5, 2, 1)
