"""Training by days while the logs grow: what is appended is trained next, as if it had been there from the start."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config.run_config import Config, check_config, job_of
from sharding.world import World
from tests.contracts.test_resume import fingerprint
from tests.contracts.test_world_size import global_batches, losses
from tests.support.prepared import made, write_events
from trainer.checkpoint.folder import newest
from trainer.config.identity import identity
from trainer.config.job import Channel, Job, Outcome
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.examples import WINDOW_STEP
from trainer.errors import CheckpointError
from trainer.loop.build import build_model, load_for_evaluation
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics
from trainer.storage.files import hash_file

pytestmark = pytest.mark.usefixtures("ray_session")

DAY = 100
Events = list[tuple[Any, ...]]


def events_of(day: int) -> Events:
    """(user, item, time, click, brand): users, items and brands join from day to day."""
    choose = random.Random(day)
    events = []
    for _ in range(90):
        user, item = choose.randint(0, 25 + 5 * day), choose.randint(1, 12 + 4 * day)
        time = DAY * day + choose.randint(0, DAY - 1)
        events.append((user, item, time, float(choose.random() < 0.4), choose.randint(0, 3 + 2 * day)))
    return events


def write_day(folder: Path, day: int, events: Events | None = None, name: str = "") -> None:
    path = folder / "logs" / f"day-{day}{name}.parquet"
    write_events(path, events or events_of(day), "click", "brand", row_group_size=60)


def config_in(folder: Path, run: str, validation_day: int, **sections: Any) -> Config:
    train = {"days": {"length": DAY}, "batch_size": 8, "log_every_steps": 1, "sample_log": True}
    table = {"dim": 8, "sharding": "row_wise"}
    values: dict[str, Any] = {
        "run": {"dir": str(folder / run), "dataset": str(folder / "dataset"), "seed": 5},
        "logs": {
            "path": str(folder / "logs"),
            "labels": ["click"],
            "history_label": "click",
            "features": {"brand": {"kind": "categorical"}},
        },
        "split": {
            "kind": "global_time",
            "validation_time": DAY * validation_day,
            "test_time": DAY * (validation_day + 1),
        },
        "model": {"kind": "din", "max_history": 12, "experts": {"hidden": [8], "activation": "dice", "dropout": 0.25}},
        "tables": {"item": {**table, **sections.pop("item", {})}, "brand": {**table, **sections.pop("brand", {})}},
        "train": {**train, **sections.pop("train", {})},
        "evaluate": {"batch_size": 16},
        "plan": {"measure": False},
        **sections,
    }
    return check_config(values, "test")


def train(world: World, job: Job, stop_after: int | None = None) -> tuple[Outcome, str, list[dict[str, Any]]]:
    """(outcome, all weights and state, events that were sent)."""
    torch.set_num_threads(1)
    asked: list[None] = []
    sent: list[dict[str, Any]] = []

    def stop_requested() -> bool:
        asked.append(None)
        return stop_after is not None and len(asked) >= stop_after

    training = Training(job, world, Channel(send=sent.append, stop_requested=stop_requested))
    return training.run(), fingerprint(training), sent


def days_trained(run_dir: Path, world_size: int) -> list[int]:
    """Of every step."""
    batches = global_batches(run_dir, world_size)
    assert all(len({example // WINDOW_STEP for example in batch}) == 1 for batch in batches)
    return [batch[0] // WINDOW_STEP for batch in batches]


@pytest.fixture
def three_days(tmp_path: Path) -> Path:
    """Days 0 to 2 to be trained, day 3 to validate on."""
    for day in range(4):
        write_day(tmp_path, day)
    made(config_in(tmp_path, "any", 3))
    return tmp_path


HASHED = {"ids": {"kind": "hash", "num_rows": 40}}


@pytest.mark.parametrize(("ids", "world_size"), [({}, 1), ({"item": HASHED, "brand": HASHED}, 2)])
def test_training_on_appended_days_equals_training_with_them_from_the_start(rank_pool, tmp_path, ids, world_size):
    """Tables of vocabularies grow: rows that were there stay, and new ones are as they would have been."""
    for day in range(4):
        write_day(tmp_path, day)
    first = made(config_in(tmp_path, "any", 3, **ids))
    files = {part.path: (part.sha256, (tmp_path / "dataset" / part.path).stat().st_mtime_ns) for part in first.parts}
    rank_pool.run(world_size, train, job_of(config_in(tmp_path, "pieces", 3, **ids)))
    num_steps = len(days_trained(tmp_path / "pieces", world_size))
    for day in (4, 5):
        write_day(tmp_path, day)
    grown = made(config_in(tmp_path, "any", 5, **ids))
    assert grown.counts.num_items > first.counts.num_items
    pieces = rank_pool.run(world_size, train, job_of(config_in(tmp_path, "pieces", 5, **ids)))
    whole = rank_pool.run(world_size, train, job_of(config_in(tmp_path, "whole", 5, **ids)))
    assert [state for _, state, _ in pieces] == [state for _, state, _ in whole]
    assert losses(tmp_path / "pieces").tolist() == losses(tmp_path / "whole").tolist()
    trained = days_trained(tmp_path / "pieces", world_size)
    assert sorted(set(trained[:num_steps])) == [0, 1, 2]
    assert sorted(set(trained[num_steps:])) == [3, 4]
    assert global_batches(tmp_path / "pieces", world_size) == global_batches(tmp_path / "whole", world_size)
    for path, (sha256, changed) in files.items():
        assert hash_file(tmp_path / "dataset" / path) == sha256
        assert (tmp_path / "dataset" / path).stat().st_mtime_ns == changed
    records = [row for row in read_metrics(tmp_path / "pieces/metrics.jsonl") if row["kind"] == "progressive"]
    assert [row["day"] for row in records] == [1, 2, 3, 4, 5]


def test_within_a_day_more_days_may_come(rank_pool, three_days):
    job = job_of(config_in(three_days, "pieces", 3))
    assert rank_pool.run(1, train, job, 6)[0][0].reason == "stopped"
    write_day(three_days, 4)
    made(config_in(three_days, "any", 4))
    pieces = rank_pool.run(1, train, job_of(config_in(three_days, "pieces", 4)))
    whole = rank_pool.run(1, train, job_of(config_in(three_days, "whole", 4)))
    assert pieces[0][1] == whole[0][1]


def test_within_a_day_more_of_that_day_is_refused(rank_pool, three_days):
    job = job_of(config_in(three_days, "run", 3))
    rank_pool.run(1, train, job, 6)
    (checkpoint,) = (three_days / "run/checkpoints").glob("step_000000006")
    days = json.loads((checkpoint / "manifest.json").read_text())["days"]
    assert days["trained"] > 0
    write_day(three_days, days["day"], [(900, 1, DAY * days["day"] + 5, 1.0, 1)], "-late")
    made(config_in(three_days, "run", 3))
    with pytest.raises(CheckpointError, match=f"within the day that begins at {DAY * days['day']}, and impressions"):
        rank_pool.run(1, train, job)


def test_late_events_are_reported_and_not_trained(rank_pool, three_days):
    rank_pool.run(1, train, job_of(config_in(three_days, "run", 3)))
    trained = days_trained(three_days / "run", 1)
    write_day(three_days, 0, [(900, 1, 5, 1.0, 1), (901, 1, 7, 0.0, 1)], "-late")
    write_day(three_days, 4)
    made(config_in(three_days, "run", 4))
    outcome, _, sent = rank_pool.run(1, train, job_of(config_in(three_days, "run", 4)))[0]
    warnings = [event["text"] for event in sent if event["kind"] == "warning"]
    assert warnings == ["2 impressions were added to days before 300, which were trained already; they are not trained"]
    again = days_trained(three_days / "run", 1)
    assert (again[: len(trained)], set(again[len(trained) :])) == (trained, {3})
    assert outcome.step == len(again)


def evaluate(world: World, job: Job) -> dict[str, float]:
    """As the stage of its own does."""
    manifest = read_manifest(job.dataset_dir)
    built = build_model(job, manifest, world)
    found, _ = newest(job.checkpoints_dir)
    assert found is not None
    load_for_evaluation(found, built)
    metrics: dict[str, float] = built.task.evaluator("test", world, built.dynamic).mean_metrics(built.model)
    return metrics


def test_more_held_out_logs_alone_train_nothing_and_are_evaluated(rank_pool, three_days):
    """Items of the new logs may be known by now, so that their tables have rows that the checkpoint does not have."""
    job = job_of(config_in(three_days, "run", 3))
    first = rank_pool.run(1, train, job)[0]
    write_day(three_days, 4)
    made(config_in(three_days, "run", 3))
    again = rank_pool.run(1, train, job)[0]
    assert again[:2] == first[:2]
    assert 0.0 < rank_pool.run(1, evaluate, job)[0]["auc"] < 1.0


def test_a_held_out_period_that_moves_back_is_refused(rank_pool, three_days):
    rank_pool.run(1, train, job_of(config_in(three_days, "run", 3)))
    write_day(three_days, 4)
    made(config_in(three_days, "run", 2))
    with pytest.raises(CheckpointError, match=r"trained up to 300, and split\.validation_time is now 200"):
        rank_pool.run(1, train, job_of(config_in(three_days, "run", 2)))


def test_in_epochs_a_grown_dataset_is_another_one(rank_pool, three_days):
    job = job_of(config_in(three_days, "run", 3, train={"days": None, "epochs": 1}))
    rank_pool.run(1, train, job)
    write_day(three_days, 4)
    made(config_in(three_days, "run", 3))
    with pytest.raises(CheckpointError, match="another dataset"):
        rank_pool.run(1, train, job)


def test_the_times_of_the_split_are_free_by_days_alone(tmp_path):
    by_days, moved = (identity(config_in(tmp_path, "run", day)) for day in (3, 4))
    assert by_days == moved
    assert by_days["split.kind"] == "global_time"
    in_epochs = [identity(config_in(tmp_path, "run", day, train={"days": None})) for day in (3, 4)]
    assert in_epochs[0] != in_epochs[1]
