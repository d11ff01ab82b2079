"""Logs that came since a next-item run was trained: nothing changes before a choice, and each choice does what it says."""

import random
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.reshard import run as run_reshard
from cluster.config.run_config import Config, check_config, job_of, load_config
from cluster.data.prepare import prepare
from cluster.driver.new_logs import check_append, kept_outcome
from sharding.world import World
from tests.support.jobs import with_sections
from tests.support.prepared import write_events
from trainer.checkpoint.folder import FILE_HASH, committed, newest, read
from trainer.config.job import SILENT, Job, Outcome
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.errors import CheckpointError, UserError
from trainer.loop.build import build_model, load_for_evaluation
from trainer.loop.train import Training
from trainer.storage.files import hash_file

pytestmark = pytest.mark.usefixtures("ray_session")

EPOCHS = 2
BATCH = 8


def config_in(folder: Path, **sections: Any) -> Config:
    values: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "seed": 5},
        "logs": {"path": str(folder / "logs")},
        "model": {"max_history": 8, "encoder": {"num_blocks": 1, "dropout": 0.0}},
        "tables": {"item": {"dim": 8, "sharding": "row_wise"}},
        "train": {"epochs": EPOCHS, "batch_size": BATCH, "early_stopping": {"patience": 1}},
        "checkpoint": {"keep": 9},
        "plan": {"measure": False},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return check_config(values, "test")


def write_day(folder: Path, day: int) -> None:
    """Users and items join from day to day."""
    choose = random.Random(day)
    events = [
        (choose.randint(0, 30 + 20 * day), choose.randint(1, 20 + 9 * day), 100 * day + n // 9) for n in range(600)
    ]
    write_events(folder / "logs" / f"day-{day}.parquet", events)


def prepared(config: Config) -> Manifest:
    """As the driver prepares."""
    return prepare(config, lambda _: None, lambda existing: check_append(config, existing))


def train(world: World, job: Job) -> Outcome:
    return Training(job, world, SILENT).run()


def load(world: World, job: Job) -> int:
    """Load the newest checkpoint for an evaluation of the dataset as it is; its rows of items."""
    built = build_model(job, read_manifest(job.dataset_dir), world)
    found, _ = newest(job.checkpoints_dir)
    assert found is not None
    load_for_evaluation(found, built)
    return built.catalogue.num_known


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def tensors(checkpoint: Path) -> dict[str, str]:
    return {name: entry[FILE_HASH] for name, entry in read(checkpoint).files.items() if name.endswith(".distcp")}


def test_a_trained_run_asks_before_logs_are_appended_and_follows_the_choice(rank_pool: Any, tmp_path: Path) -> None:
    write_day(tmp_path, 0)
    config = config_in(tmp_path)
    first = prepared(config)
    before = rank_pool.run(2, train, job_of(config))[0]
    steps = -(-first.num_rows // BATCH)
    assert before.step == EPOCHS * steps
    write_day(tmp_path, 1)

    untouched = content(config.run_dir)
    with pytest.raises(UserError) as caught:
        prepared(config)
    message = str(caught.value)
    assert content(config.run_dir) == untouched
    assert "day-1.parquet: came since this run was trained. Nothing was changed" in message
    commands = [line.partition(": ")[2].split() for line in message.splitlines()[1:]]
    assert [command[:2] for command in commands] == [["shoal", "run"]] * 3
    given = [[word for word in shlex.split(" ".join(command[3:])) if word != "--set"] for command in commands]
    assert given == [
        ["run.new_logs=evaluate"],
        ["run.new_logs=continue", "train.epochs=4"],
        [f"run.dir={tmp_path / 'run-2'}"],
    ]
    file = tmp_path / "config.toml"
    file.write_text(f'[logs]\npath = "{tmp_path / "logs"}"\n')
    assert [load_config(file, settings).run.new_logs for settings in given] == ["evaluate", "continue", "ask"]

    chosen = config_in(tmp_path, run={"new_logs": "evaluate"})
    second = prepared(chosen)
    assert (second.generation, second.grown_from) == (1, (first.digest,))
    assert second.num_item_rows > first.num_item_rows
    kept = kept_outcome(chosen, second)
    assert kept is not None
    assert (kept.reason, kept.step) == ("kept", before.step)
    assert rank_pool.run(2, load, job_of(chosen)) == [second.num_item_rows] * 2
    with pytest.raises(UserError, match="has grown since this run was trained"):
        kept_outcome(config, second)  # asked again, not trained on without a word

    more = config_in(tmp_path, run={"new_logs": "continue"}, train={"epochs": 4, "early_stopping": None})
    assert kept_outcome(more, second) is None
    check_continued(rank_pool, more, before.step, -(-second.num_rows // BATCH))


def check_continued(rank_pool: Any, config: Config, step: int, steps_per_epoch: int) -> None:
    """Two epochs of the grown dataset, interrupted within one, end as in one go."""
    job = job_of(config)
    whole = replace(job, run_dir=job.run_dir.with_name("whole"))
    whole.run_dir.mkdir()
    (job.run_dir / "checkpoints").rename(job.run_dir / "kept")
    for run in (job, whole):
        shutil.copytree(job.run_dir / "kept", run.checkpoints_dir)
    last = step + 2 * steps_per_epoch
    assert rank_pool.run(2, train, whole)[0].step == last
    cut = with_sections(job, train=job.config.train.model_copy(update={"max_steps": step + steps_per_epoch + 2}))
    assert rank_pool.run(2, train, cut)[0].step == step + steps_per_epoch + 2
    assert rank_pool.run(2, train, job)[0].step == last
    ours, theirs = (committed(run.checkpoints_dir)[0] for run in (job, whole))
    assert ours.name == theirs.name
    assert tensors(ours) == tensors(theirs)


def test_a_checkpoint_is_resharded_after_logs_were_appended(rank_pool: Any, tmp_path: Path) -> None:
    """It lacks the rows of new items, as the original does, and a run that continues from it ends as one from the original."""
    write_day(tmp_path, 0)
    config = config_in(tmp_path, train={"epochs": 1})
    num_rows = prepared(config).num_item_rows
    step = rank_pool.run(2, train, job_of(config))[0].step
    write_day(tmp_path, 1)
    longer = config_in(tmp_path, run={"new_logs": "continue"}, train={"epochs": 2})
    assert prepared(longer).num_item_rows > num_rows
    job = job_of(longer)
    [source, *_] = committed(job.checkpoints_dir)
    resharded = replace(job, run_dir=tmp_path / "resharded")
    done = run_reshard(source, resharded.checkpoints_dir, None, ["cluster.num_workers=3"])
    assert done.world_size == 3
    path = Path(done.checkpoint)
    assert {name for name in read(path).files if name.endswith(".distcp")} == {
        f"__{rank}_0.distcp" for rank in range(3)
    }
    assert read(path).dataset_digest == read(source).dataset_digest

    original = replace(job, run_dir=tmp_path / "original")
    shutil.copytree(source, original.checkpoints_dir / source.name)
    assert [rank_pool.run(3, train, run)[0].step > step for run in (original, resharded)] == [True, True]
    ends = [committed(run.checkpoints_dir)[0] for run in (original, resharded)]
    assert tensors(ends[0]) == tensors(ends[1])


def test_a_run_that_was_not_trained_takes_new_logs(tmp_path: Path) -> None:
    write_day(tmp_path, 0)
    prepared(config_in(tmp_path))
    write_day(tmp_path, 1)
    assert prepared(config_in(tmp_path)).generation == 1


def test_a_checkpoint_of_another_dataset_is_refused_as_before(rank_pool: Any, tmp_path: Path) -> None:
    write_day(tmp_path, 0)
    config = config_in(tmp_path, train={"epochs": 1})
    prepared(config)
    rank_pool.run(1, train, job_of(config))
    write_day(tmp_path, 1)
    other = config_in(tmp_path, run={"dataset": str(tmp_path / "other")}, train={"epochs": 1})
    prepared(other)
    with pytest.raises(CheckpointError, match="another dataset"):
        rank_pool.run(1, train, job_of(other))
