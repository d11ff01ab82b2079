"""Ids that are sent while the step before computes: every run equals the one that sends them at the look-up, bit for bit."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sharding.tables.early_requests import EarlyRequest
from sharding.world import World
from tests.settings.entries.tables import EVENTS, FULL, WORDS
from tests.settings.entry import Settings
from tests.settings.lab import Lab
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from tests.support.trained_runs import lab_in
from tests.trainer.loop.test_later_results import check_equal, item, steps_of, train
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import SILENT, Job
from trainer.loop.step import TrainStep
from trainer.loop.train import Training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    tiny_dataset(folder / "dataset")
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("early-lab"))


def job_in(data: Path, run_dir: Path, early: bool, **sections: Any) -> Job:
    train = {**sections.pop("train", {}), "send_ids_early": early}
    return tiny_job(run_dir, data / "dataset", train=train, **sections)


SAMPLED = {"kind": "sampled_softmax", "num_negatives": 6}
FORMS: dict[str, dict[str, Any]] = {
    "dropout, full softmax": {"model": {"max_history": 8, "encoder": {"kind": "sasrec", "dropout": 0.3}}},
    "sampled, streaming frequencies": {
        "model": {
            "max_history": 8,
            "encoder": {"kind": "sasrec", "dropout": 0.3},
            "objective": {**SAMPLED, "negatives": {"kind": "mixed"}, "logq": "streaming", "logq_rate": 0.2},
        }
    },
    "table-wise": {"tables": item(sharding="table_wise"), "model": {"max_history": 8, "objective": SAMPLED}},
    "column-wise": {"tables": item(sharding="column_wise", optimizer="adagrad")},
    "copied": {"tables": item(sharding="data_parallel")},
    "clipped, weight ema": {"train": {"clip_norm": 0.1, "ema_decay": 0.9}},
    "evaluations and checkpoints": {
        "train": {"evaluate_every_epochs": 1, "early_stopping": {"metric": "ndcg@10", "patience": 9}},
        "checkpoint": {"every_steps": 3, "keep": 20},
    },
}


@pytest.mark.pairwise
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_sends_ids_early_is_bit_identical(
    rank_pool: RankPool, data: Path, tmp_path: Path, form: str, world_size: int
) -> None:
    plain = rank_pool.run(world_size, train, job_in(data, tmp_path / "plain", False, **FORMS[form]), False, [4])
    early = rank_pool.run(world_size, train, job_in(data, tmp_path / "early", True, **FORMS[form]), False, [4])
    check_equal(early, plain)


BAGS = {"ids": {"kind": "hash", "num_rows": 12}, "lookup": "bags", "sharding": "row_wise"}
FEATURES: dict[str, tuple[str, Settings]] = {
    "dynamic ids": ("events", FULL),
    "dynamic ids, few checkpoints": ("events", {**FULL, "checkpoint.every_steps": 2}),
    "features": ("events", EVENTS),
    "bags": ("events", {**WORDS, "tables.colour": BAGS}),
    "din": ("impressions", {"model.kind": "din"}),
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", FEATURES)
def test_rows_of_features_are_those_of_a_run_that_sends_ids_at_the_look_up(
    rank_pool: RankPool, lab: Lab, name: str, world_size: int, later: bool
) -> None:
    """A row that the next batch gives to another id is still read and updated by the step that is computed meanwhile."""
    world, settings = FEATURES[name]
    settings = {**settings, "train.max_steps": 9, "train.log_every_steps": 1}
    plain, early = (
        rank_pool.run(world_size, train, lab.job(lab.settings(world, {**settings, **given})), later, [3])
        for given in ({}, {"train.send_ids_early": True})
    )
    check_equal(early, plain)
    if settings.get("tables.colour") == FULL["tables.colour"]:
        assert sum(line.get("ids.colour.evicted", 0) for line in json.loads(early[0].lines)) > 0


@pytest.mark.parametrize("later", [False, True])
def test_a_stop_ends_the_step_that_is_prepared_and_a_resumed_run_is_bit_identical(
    rank_pool: RankPool, lab: Lab, later: bool
) -> None:
    settings: Settings = {**FULL, "train.max_steps": 9, "train.batch_size": 4, "train.sample_log": True}
    early: Settings = {**settings, "train.send_ids_early": True}
    whole = rank_pool.run(2, train, lab.job(lab.settings("events", settings)), False)
    job = lab.job(lab.settings("events", early))
    stopped = rank_pool.run(2, train, job, later, (), 2)
    assert [each.reason for each in stopped] == ["stopped"] * 2
    newest = checkpoint_folder.committed(job.run_dir / "checkpoints")[0]
    assert checkpoint_folder.read(newest).step == (4 if later else 3)
    resumed = rank_pool.run(2, train, job, later)
    assert [each.fingerprint for each in resumed] == [each.fingerprint for each in whole]
    assert [each.examples for each in resumed] == [each.examples for each in whole]
    assert steps_of(resumed[0]) == steps_of(whole[0])


def test_a_requested_checkpoint_follows_the_step_that_is_prepared(
    rank_pool: RankPool, data: Path, tmp_path: Path
) -> None:
    job = job_in(data, tmp_path / "run", True, checkpoint={"keep": 9})
    rank_pool.run(2, train, job, False, (), None, 3)
    steps = [checkpoint_folder.read(path).step for path in checkpoint_folder.committed(job.run_dir / "checkpoints")]
    assert steps == [24, 4]


def order_of_step(world: World, job: Job) -> list[str]:
    """Return when requests are sent, looked up and followed by updates."""
    order: list[str] = []
    sent = EarlyRequest.__init__
    looked_up = EarlyRequest.looked_up
    update = TrainStep._update

    def send(self: EarlyRequest, *given: Any) -> None:
        order.append("send")
        sent(self, *given)

    def look_up(self: EarlyRequest) -> Any:
        order.append("look up")
        return looked_up(self)

    def updated(self: TrainStep, *given: Any) -> None:
        order.append(f"update {given[-1]}")
        update(self, *given)

    patches = mock.patch.multiple(EarlyRequest, __init__=send, looked_up=look_up)
    with patches, mock.patch.object(TrainStep, "_update", updated):
        Training(job, world, SILENT).run()
    return order


def test_ids_are_sent_before_the_update_of_the_step_before_and_not_beyond_a_checkpoint(
    rank_pool: RankPool, data: Path, tmp_path: Path
) -> None:
    settings = {"train": {"max_steps": 5}, "checkpoint": {"every_steps": 3}}
    expected = ["send", "update 0", "look up", "send", "update 1", "look up", "update 2"]
    expected += ["send", "update 3", "look up", "update 4"]
    early = rank_pool.run(2, order_of_step, job_in(data, tmp_path / "early", True, **settings))
    assert early == [expected] * 2
    plain = rank_pool.run(1, order_of_step, job_in(data, tmp_path / "plain", False, **settings))
    assert plain == [[f"update {step}" for step in range(5)]]
