"""Plans and reports of the loop: steps of every epoch, the next checkpoint, the imbalance of ranks."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from trainer.config.job import Channel, Job
from trainer.costing.matmul_peak import read_peak
from trainer.loop.pace import Pace
from trainer.loop.progress import next_save
from trainer.loop.rank_measures import matmul_peak
from trainer.loop.step_result import StepResult
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics


def planned(world: World, job: Job) -> tuple[list[int], list[int], list[int]]:
    """Return (planned steps at the end of each epoch, the same as trained, the next checkpoint reported after each step)."""
    reported: list[int] = []
    training = Training(job, world, Channel(send=lambda event: None, stop_requested=lambda: False))
    whole, ends = training._train, []

    def train(item: Any) -> StepResult:
        result = whole(item)
        reported.append(next_save(training.state.step, training.epoch_ends.tolist(), job))
        if training.state.position.trained == 0:
            ends.append(training.state.step)
        return result

    training._train = train  # type: ignore[method-assign]
    training.run()
    return training.epoch_ends.tolist(), ends, reported


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"batch_tokens": 64}, {"batch_tokens": 64, "long_histories": "windows"}])
def test_the_steps_of_every_epoch_and_the_next_checkpoint_are_exact(rank_pool, tmp_path, settings, world_size):
    tiny_dataset(tmp_path / "dataset")
    train = {"epochs": 4, "evaluate_every_epochs": 2, "sample_log": False, **settings}
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train=train, checkpoint={"every_steps": 7})
    for epoch_ends, trained, reported in rank_pool.run(world_size, planned, job):
        assert epoch_ends == trained
        saves = {epoch_ends[1], epoch_ends[3], *range(7, epoch_ends[3], 7)}
        assert reported[:-1] == [min(s for s in saves if s > step) for step in range(1, epoch_ends[3])]
        assert reported[-1] == epoch_ends[3]


@pytest.mark.parametrize("settings", [{}, {"batch_tokens": 64}])
def test_max_steps_ends_the_plan(rank_pool, tmp_path, settings):
    tiny_dataset(tmp_path / "dataset")
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train={"max_steps": 9, **settings})
    epoch_ends, _, reported = rank_pool.run(1, planned, job)[0]
    assert epoch_ends[-1] == 9
    assert len(reported) == 9


def test_imbalance_is_of_the_largest_shares_since_the_last_line():
    pace = Pace(0, world_size=4)
    result = StepResult(1.0, 5, num_events=40, most_events=20, finite=True, stop_requested=False)
    pace.count(1, result, 10)
    pace.count(2, replace(result, most_events=10), 10)
    assert pace.imbalance() == pytest.approx((20 + 10) / (10 + 10))
    pace.count(3, replace(result, most_events=10), 10)
    assert pace.imbalance() == 1.0
    pace.count(4, replace(result, num_events=0, most_events=0), 10)
    assert pace.imbalance() == 1.0


def run_whole(world: World, job: Job) -> None:
    Training(job, world, Channel(send=lambda event: None, stop_requested=lambda: False)).run()


def test_metrics_have_the_imbalance_of_each_interval(rank_pool, tmp_path):
    """One history of each batch for two ranks: one of them has none."""
    tiny_dataset(tmp_path / "dataset", num_users=20, num_parts=1, groups_per_part=1)
    train = {"batch_size": 1, "max_steps": 6, "log_every_steps": 2}
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train=train)
    rank_pool.run(2, run_whole, job)
    lines = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["imbalance"] for row in lines] == [2.0] * 3


def test_the_peak_of_matrix_products_of_all_workers_is_recorded(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset", num_users=20, num_parts=1, groups_per_part=1)
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train={"max_steps": 1})
    rank_pool.run(2, run_whole, job)
    peak = read_peak(job.run_dir)
    assert peak is not None
    assert (peak.num_workers, peak.precision) == (2, "float32")
    assert peak.flops_per_second > 1e6


def test_the_peak_is_measured_once_in_a_process_for_each_precision():
    cpu = torch.device("cpu")
    assert matmul_peak(cpu, "float32") == matmul_peak(cpu, "float32")  # two measurements differ
    assert matmul_peak(cpu, "float32") != matmul_peak(cpu, "bfloat16")


def trained_and_warned(world: World, job: Job) -> tuple[list[int], list[str]]:
    """Return the examples that this rank trained, and the warnings that it sent."""
    events: list[dict[str, Any]] = []
    Training(job, world, Channel(send=events.append, stop_requested=lambda: False)).run()
    log = (job.run_dir / "sample_log" / f"rank-{world.rank}.jsonl").read_text().splitlines()
    rows = [row for line in log for row in json.loads(line)["row_ids"] if row >= 0]
    return rows, [event["text"] for event in events if event["kind"] == "warning"]


def test_a_single_row_group_is_trained_by_all_ranks(rank_pool, tmp_path):
    """More ranks than streams: each still has its share of every batch."""
    tiny_dataset(tmp_path / "dataset", num_users=18, num_parts=1, groups_per_part=1)
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train={"epochs": 1, "batch_size": 6})
    results = rank_pool.run(3, trained_and_warned, job)
    assert sorted(row for rows, _ in results for row in rows) == list(range(18))
    assert [len(rows) for rows, _ in results] == [6, 6, 6]
    assert [warnings for _, warnings in results] == [[], [], []]


def test_a_batch_with_fewer_examples_than_ranks_gives_one_warning(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset", num_users=18, num_parts=1, groups_per_part=1)
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train={"max_steps": 3, "batch_size": 2})
    (first, warnings), *others = rank_pool.run(3, trained_and_warned, job)
    assert len(first) + sum(len(rows) for rows, _ in others) == 6
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "train.batch_size = 2, fewer than the 3 workers: at each step at least 1 of them train nothing"
    )
    assert [warnings for _, warnings in others] == [[], []]


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_metrics_have_the_norm_of_the_gradient_if_it_is_clipped(rank_pool, tmp_path, clip_norm):
    tiny_dataset(tmp_path / "dataset")
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train={"max_steps": 3, "clip_norm": clip_norm})
    rank_pool.run(2, run_whole, job)
    lines = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row.get("grad_norm", 0.0) > 0.01 for row in lines] == [clip_norm is not None] * 3


def losses_of(world: World, job: Job, measured: bool) -> tuple[list[float], int]:
    """Return the losses of a training, and how many measurements were sent."""
    values: list[dict[str, float]] = []
    measure = values.append if measured else None
    training = Training(job, world, Channel(send=lambda event: None, stop_requested=lambda: False, measure=measure))
    training.measures._sent = -1e9  # the first ones at once
    training.run()
    rows = read_metrics(job.run_dir / "metrics.jsonl")
    return [row["loss"] for row in rows if row["kind"] == "train"], len(values)


def test_measuring_and_tracing_change_no_loss(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset", num_users=20, num_parts=1, groups_per_part=1)
    train = {"batch_size": 5, "max_steps": 6, "log_every_steps": 1}
    plain = tiny_job(tmp_path / "plain", tmp_path / "dataset", train=train)
    traced = tiny_job(tmp_path / "traced", tmp_path / "dataset", train=train, tracking={"profile_steps": [2]})
    (losses, none), *_ = rank_pool.run(2, losses_of, plain, False)
    results = rank_pool.run(2, losses_of, traced, True)
    assert none == 0
    assert all(number > 0 for _, number in results)
    assert results[0][0] == losses
    assert len(losses) == 6
    names = sorted(path.name for path in (tmp_path / "traced/profile").iterdir())
    assert names == ["step-2-rank-0.json", "step-2-rank-1.json"]
