"""A training with concurrent evaluation: it saves what others validate, with the metrics that its own loop would have computed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.driver.promotion import Promotion
from cluster.workers import jobs
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.config.job import SILENT, Channel, Job, Outcome
from trainer.data.dataset.manifest import read_manifest
from trainer.errors import CheckpointError
from trainer.loop.state import Best
from trainer.loop.train import Training
from trainer.loop.validations import is_due, validation_of, write_validations
from trainer.metrics_log import read_metrics

STEPS = (8, 16, 24)  # at the ends of epochs
STOPPING = {"metric": "ndcg@10", "patience": 2}


def train(world: World, job: Job) -> tuple[Outcome, list[dict[str, Any]]]:
    """Train to the end. Return the outcome and the messages."""
    events: list[dict[str, Any]] = []
    outcome = Training(job, world, Channel(send=events.append, stop_requested=lambda: False)).run()
    return outcome, events


def validate(world: World, job: Job, path: Path) -> dict[str, float]:
    return jobs.validate(jobs.ValidationJob(job, StoredCheckpoint(path, checkpoint_folder.read(path))), world, SILENT)


def job_in(tmp_path: Path, name: str, concurrent: bool = True, keep: int = 9, **train: Any) -> Job:
    if not (tmp_path / "dataset").exists():
        tiny_dataset(tmp_path / "dataset")
    evaluation = {"num_workers": 1 if concurrent else 0}
    return tiny_job(
        tmp_path / name,
        tmp_path / "dataset",
        train={"evaluate_every_epochs": 1, "early_stopping": STOPPING, **train},
        checkpoint={"keep": keep},
        cluster={"evaluation": evaluation},
    )


def validation_lines(job: Job) -> list[dict[str, Any]]:
    return [line for line in read_metrics(job.run_dir / "metrics.jsonl") if line["kind"] == "validation"]


def metrics_of(job: Job) -> dict[int, dict[str, float]]:
    return {
        line["step"]: {name: value for name, value in line.items() if name not in ("step", "kind", "seconds")}
        for line in validation_lines(job)
    }


def checkpoints(job: Job) -> dict[int, Path]:
    return {
        checkpoint_folder.read(path).step: path for path in reversed(checkpoint_folder.committed(job.checkpoints_dir))
    }


def record(job: Job, values: dict[int, float]) -> None:
    """Write the results of concurrent evaluations of the run's checkpoints."""
    promotion = Promotion(job.run_dir, read_manifest(job.dataset_dir).digest, job.config.train.early_stopping)
    for step, value in values.items():
        promotion.add(checkpoint_folder.read(checkpoints(job)[step]), {"ndcg@10": value}, 1.0)


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9}], ids=["weights", "averages"])
def test_metrics_are_those_of_the_loop_at_the_same_step(
    rank_pool: RankPool, tmp_path: Path, settings: dict[str, Any]
) -> None:
    in_loop = job_in(tmp_path, "loop", concurrent=False, **settings)
    concurrent = job_in(tmp_path, "concurrent", **settings)
    rank_pool.run(2, train, in_loop)
    rank_pool.run(2, train, concurrent)
    expected = metrics_of(in_loop)
    assert tuple(expected) == STEPS
    assert validation_lines(concurrent) == []
    for step, path in checkpoints(concurrent).items():
        assert is_due(checkpoint_folder.read(path))
        for metrics in rank_pool.run(2, validate, concurrent, path):
            assert metrics == expected[step]
        assert rank_pool.run(1, validate, concurrent, path)[0] == pytest.approx(expected[step], rel=1e-6)


def test_checkpoints_that_nobody_has_validated_are_kept_and_no_other_ones(rank_pool: RankPool, tmp_path: Path) -> None:
    job = job_in(tmp_path, "run", keep=1, epochs=2)
    rank_pool.run(1, train, job)
    assert list(checkpoints(job)) == [8, 16]
    record(job, {8: 0.1, 16: 0.2})
    longer = replace(job, config=job_in(tmp_path, "run", keep=1, epochs=3).config)
    _, events = rank_pool.run(1, train, longer)[0]
    assert list(checkpoints(job)) == [16, 24]  # the best and the newest
    (start,) = [event for event in events if event["kind"] == "starts"]
    assert (start["step"], start["best"], start["counted"]) == (
        16,
        {"value": 0.2, "step": 16, "evaluations_since": 0},
        16,
    )


@pytest.mark.parametrize("concurrent", [True, False], ids=["concurrent", "in the loop"])
def test_a_resumed_training_counts_and_logs_each_evaluation_once(
    rank_pool: RankPool, tmp_path: Path, concurrent: bool
) -> None:
    """With the same workers from then on, or with an evaluation in its own loop."""
    rank_pool.run(1, train, job_in(tmp_path, "run"))
    record(job_in(tmp_path, "run"), {8: 0.5, 16: 0.4, 24: 0.3})
    longer = job_in(tmp_path, "run", concurrent=concurrent, epochs=9)
    for _ in range(2):
        outcome, _ = rank_pool.run(1, train, longer)[0]
        assert outcome == Outcome("early", 24, 8, 0.5)
        assert [(line["step"], line["ndcg@10"], line["seconds"]) for line in validation_lines(longer)] == [
            (8, 0.5, 1.0),
            (16, 0.4, 1.0),
            (24, 0.3, 1.0),
        ]


def test_evaluations_in_the_loop_follow_concurrent_ones(rank_pool: RankPool, tmp_path: Path) -> None:
    rank_pool.run(1, train, job_in(tmp_path, "run"))
    record(job_in(tmp_path, "run"), {8: 0.4, 16: 0.9, 24: 0.8})
    longer = job_in(tmp_path, "run", concurrent=False, epochs=9)
    outcome, _ = rank_pool.run(1, train, longer)[0]
    assert outcome == Outcome("early", 32, 16, 0.9)
    saved = checkpoint_folder.read(checkpoints(longer)[32]).metrics
    assert (saved["best"], saved["counted"]) == ({"value": 0.9, "step": 16, "evaluations_since": 2}, 32)
    assert checkpoint_folder.read_best(longer.checkpoints_dir) == {"step": 16, "metric": "ndcg@10", "value": 0.9}


def train_while_others_validate(world: World, job: Job) -> None:
    """Train, and record an evaluation of each checkpoint as soon as it is committed."""
    made = 0

    def send(event: dict[str, Any]) -> None:
        nonlocal made
        if event["kind"] == "checkpoint":
            found = [checkpoint_folder.read(path) for path in checkpoints(job).values()]
            write_validations(job.run_dir, [validation_of(each, {"ndcg@10": each.step / 100}, 0.5) for each in found])
            made += 1

    Training(job, world, Channel(send=send, stop_requested=lambda: False, validations_made=lambda: made)).run()


def log(world: World, job: Job, step: int) -> None:
    jobs.log_validations((job, step), world, SILENT)


def test_results_reach_the_log_while_training_continues_and_the_last_one_after_it(
    rank_pool: RankPool, tmp_path: Path
) -> None:
    job = job_in(tmp_path, "run")
    rank_pool.run(1, train_while_others_validate, job)
    assert {8, 16} <= set(metrics_of(job))
    lines = read_metrics(job.run_dir / "metrics.jsonl")
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    place = next(number for number, line in enumerate(lines) if line["kind"] == "validation")
    assert lines[place]["step"] < lines[place - 1]["step"] <= steps[-1]  # after further steps
    for _ in range(2):
        rank_pool.run(1, log, job, STEPS[-1])
        assert metrics_of(job) == {step: {"ndcg@10": step / 100} for step in STEPS}
        assert [
            line["step"] for line in read_metrics(job.run_dir / "metrics.jsonl") if line["kind"] == "train"
        ] == steps


def test_a_corrupt_checkpoint_is_named_by_all_ranks(rank_pool: RankPool, tmp_path: Path) -> None:
    job = job_in(tmp_path, "run", epochs=1)
    rank_pool.run(2, train, job)
    path = checkpoints(job)[8]
    shard = next(path.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=shard.name):
        rank_pool.run(2, validate, job, path)


def test_the_state_of_a_training_is_not_changed_by_what_it_leaves_to_others(
    rank_pool: RankPool, tmp_path: Path
) -> None:
    job = job_in(tmp_path, "run")
    outcome, _ = rank_pool.run(1, train, job)[0]
    assert outcome == Outcome("finished", STEPS[-1], None, None)
    saved = checkpoint_folder.read(checkpoints(job)[STEPS[-1]]).metrics
    assert Best(**saved["best"]) == Best()
