"""Behaviour of the loop around steps: early stopping, stops on request, non-finite steps, damaged checkpoints."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job, with_sections
from tests.support.rank_pool import RankPool
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Channel, Job, Outcome
from trainer.config.train import EarlyStoppingConfig
from trainer.errors import NonFiniteLossError
from trainer.loop import pace
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics
from trainer.tasks.task import OnBatch

STEPS_PER_EPOCH = 8  # of 60 histories


@dataclass(frozen=True)
class Ended:
    """The result of a training on one rank."""

    outcome: Outcome
    events: list[dict[str, Any]]
    num_skipped: int
    num_averaged: int | None


class Scripted:
    """An evaluator that returns given values one after another."""

    def __init__(self, metric: str, values: Sequence[float]) -> None:
        self._metric, self._values = metric, list(values)

    def mean_metrics(self, model: Any, on_batch: OnBatch) -> dict[str, float]:
        return {self._metric: self._values.pop(0)}


def train(
    world: World,
    job: Job,
    values: Sequence[float] = (),
    stop_after: int | None = None,
    broken: Sequence[int] = (),
    save_at: int | None = None,
) -> Ended:
    """Train to the end.

    Args:
        world: All ranks.
        job: The run.
        values: The values of evaluations one after another, instead of real metrics.
        stop_after: The step at which a stop is requested.
        broken: Steps with a loss of NaN on the last rank.
        save_at: The step at which a checkpoint is requested.
    """
    events: list[dict[str, Any]] = []
    training: Training

    def stop_requested() -> bool:
        return stop_after is not None and training.state.step + 1 >= stop_after

    def saves_requested() -> int:
        return int(save_at is not None and training.state.step + 1 >= save_at)

    channel = Channel(send=events.append, stop_requested=stop_requested, saves_requested=saves_requested)
    training = Training(job, world, channel)
    if values:
        assert job.config.train.early_stopping is not None
        training.evaluations.evaluator = Scripted(job.config.train.early_stopping.metric, values)
    model = training.built.model
    whole_loss: Callable[..., Any] = model.loss
    last = world.rank == world.world_size - 1

    def loss(*arguments: Any) -> Any:
        return whole_loss(*arguments) * (math.nan if last and training.state.step + 1 in broken else 1.0)

    model.loss = loss
    outcome = training.run()
    averaged = None if training.ema is None else int(training.ema.num_updates)
    return Ended(outcome, events, training.state.skipped_steps, averaged)


def job_in(tmp_path: Path, **sections: dict[str, Any]) -> Job:
    if not (tmp_path / "dataset").exists():
        tiny_dataset(tmp_path / "dataset")
    return tiny_job(tmp_path / "run", tmp_path / "dataset", **sections)


def stopping_early(tmp_path: Path, metric: str, patience: int) -> Job:
    """Return a job with early stopping. The loop knows no task, so any metric works."""
    job = job_in(tmp_path, train={"epochs": 9, "evaluate_every_epochs": 1}, checkpoint={"keep": 1})
    stopping = EarlyStoppingConfig(metric=metric, patience=patience)
    return with_sections(job, train=job.config.train.model_copy(update={"early_stopping": stopping}))


def committed(tmp_path: Path) -> list[int]:
    return [checkpoint_folder.read(path).step for path in checkpoint_folder.committed(tmp_path / "run/checkpoints")]


@pytest.mark.parametrize(
    ("metric", "values", "best_epoch", "last_epoch"),
    [
        ("ndcg@10", [0.3, 0.5, 0.4, 0.2], 2, 4),
        ("logloss", [0.7, 0.5, 0.6, 0.9], 2, 4),
        ("ne", [0.9, 0.8, 0.7, 0.75, 0.71], 3, 5),
        ("auc", [math.nan, 0.6, math.nan, 0.5], 2, 4),
    ],
)
def test_the_best_follows_the_direction_of_the_metric_and_patience_counts_from_it(
    rank_pool: RankPool, tmp_path: Path, metric: str, values: list[float], best_epoch: int, last_epoch: int
) -> None:
    ended = rank_pool.run(1, train, stopping_early(tmp_path, metric, patience=2), [*values, *[0.55] * 9])[0]
    best, last = best_epoch * STEPS_PER_EPOCH, last_epoch * STEPS_PER_EPOCH
    assert ended.outcome == Outcome("early", last, best, values[best_epoch - 1])
    noted = json.loads((tmp_path / "run/checkpoints/best.json").read_text())
    assert noted == {"step": best, "metric": metric, "value": values[best_epoch - 1]}
    assert committed(tmp_path) == [last, best]


def test_patience_resumes_where_the_run_was_stopped(rank_pool: RankPool, tmp_path: Path) -> None:
    job = stopping_early(tmp_path, "ndcg@10", patience=3)
    stopped = rank_pool.run(1, train, job, [0.5, 0.4, 0.3], 3 * STEPS_PER_EPOCH)[0]
    assert stopped.outcome.reason == "stopped"
    ended = rank_pool.run(1, train, job, [0.2, 0.45, 0.45, 0.45])[0]
    assert ended.outcome == Outcome("early", 4 * STEPS_PER_EPOCH, STEPS_PER_EPOCH, 0.5)
    again = rank_pool.run(1, train, job, [0.9])[0]
    assert again.outcome == ended.outcome


def test_a_stop_inside_an_epoch_leaves_a_checkpoint_of_its_step(rank_pool: RankPool, tmp_path: Path) -> None:
    dead = tmp_path / "run/checkpoints/.step_000000002.0badcafe"
    dead.mkdir(parents=True)
    ended = rank_pool.run(2, train, job_in(tmp_path), (), 3)
    assert [e.outcome.reason for e in ended] == ["stopped", "stopped"]
    assert committed(tmp_path) == [3]
    assert not dead.exists()


def test_a_checkpoint_that_is_requested_is_committed_before_the_next_step(rank_pool: RankPool, tmp_path: Path) -> None:
    ended = rank_pool.run(2, train, job_in(tmp_path, checkpoint={"keep": 9}), (), None, (), 3)
    assert [e.outcome.reason for e in ended] == ["finished", "finished"]
    assert committed(tmp_path) == [3 * STEPS_PER_EPOCH, 3]


def test_the_end_of_training_is_evaluated_at_every_cadence(rank_pool: RankPool, tmp_path: Path) -> None:
    rank_pool.run(1, train, job_in(tmp_path, train={"epochs": 2, "evaluate_every_epochs": 5}))
    lines = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if line["kind"] == "validation"]
    assert [line["step"] for line in lines] == [2 * STEPS_PER_EPOCH]
    assert committed(tmp_path) == [2 * STEPS_PER_EPOCH]


def train_with_all_messages(world: World, job: Job) -> Ended:
    with mock.patch.object(pace, "SEND_EVERY_SECONDS", 0.0):
        return train(world, job)


def test_validation_reports_its_batches_before_its_metrics(rank_pool: RankPool, tmp_path: Path) -> None:
    job = job_in(tmp_path, train={"epochs": 1}, evaluate={"batch_size": 8})
    first, second = rank_pool.run(2, train_with_all_messages, job)
    reports = [event for event in first.events if event["kind"] == "validate"]
    total = reports[0]["total"]
    assert total > 1
    assert [event["done"] for event in reports] == list(range(1, total + 1))
    kinds = [event["kind"] for event in first.events]
    assert kinds[kinds.index("validate") :][: total + 1] == ["validate"] * total + ["validation"]
    assert second.events == []


def test_steps_that_are_not_finite_are_skipped_and_their_rows_named_rank_by_rank(
    rank_pool: RankPool, tmp_path: Path
) -> None:
    broken = [2, 3, 5, 6]
    job = job_in(tmp_path, train={"epochs": 1, "max_nonfinite_steps": 2})
    ended = rank_pool.run(2, train, job, (), None, broken)
    assert [e.num_skipped for e in ended] == [4, 4]
    assert [e.outcome.reason for e in ended] == ["finished", "finished"]
    lines = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if line["kind"] == "skipped"]
    assert [line["step"] for line in lines] == broken
    logs = [(tmp_path / f"run/sample_log/rank-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    for line in lines:
        assert line["row_ids"] == [json.loads(log[line["step"] - 1])["row_ids"] for log in logs]
        assert all(line["row_ids"])


def test_too_many_such_steps_in_a_row_end_the_training(rank_pool: RankPool, tmp_path: Path) -> None:
    job = job_in(tmp_path, train={"epochs": 1, "max_nonfinite_steps": 2})
    with pytest.raises(NonFiniteLossError, match="not finite in 3 steps in a row, up to step 6"):
        rank_pool.run(2, train, job, (), None, [2, 4, 5, 6, 7])
    assert committed(tmp_path) == []


def test_a_corrupt_newest_checkpoint_is_reported(rank_pool: RankPool, tmp_path: Path) -> None:
    job = job_in(tmp_path, checkpoint={"every_steps": 3, "keep": 3}, train={"max_steps": 6})
    rank_pool.run(2, train, job)
    assert committed(tmp_path) == [6, 3]
    shard = next(checkpoint_folder.committed(tmp_path / "run/checkpoints")[0].glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    first, second = rank_pool.run(2, train, job)
    (warning,) = [event["text"] for event in first.events if event["kind"] == "warning"]
    assert shard.name in warning
    assert "step_000000006" in warning
    assert warning.endswith("going back to the one before")
    (resumed,) = [event for event in first.events if event["kind"] == "resumed"]
    assert resumed["step"] == 3
    assert second.events == []


def test_the_moving_average_is_updated_by_every_applied_step(rank_pool: RankPool, tmp_path: Path) -> None:
    job = job_in(tmp_path, train={"max_steps": 5, "ema_decay": 0.9})
    ended = rank_pool.run(1, train, job, (), None, [2])[0]
    assert ended.num_averaged == 4
