"""Results that the host reads after the next step was queued: every run equals the one that reads them at once, bit for bit."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from sharding.world import World
from tests.contracts.test_nonfinite import run as run_until_broken
from tests.contracts.test_resume import fingerprint
from tests.settings.entries.tables import FULL
from tests.settings.entry import Settings
from tests.settings.lab import Lab
from tests.support.datasets import tiny_dataset
from tests.support.device_work import as_on_a_gpu, recorded_waits
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from tests.support.trained_runs import lab_in
from tests.trainer.loop.test_device_waits import HOST_COUNTERS, MODELS, WARM
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Channel, Job
from trainer.errors import NonFiniteLossError
from trainer.loop.host_copy import HostCopy
from trainer.loop.step import TrainStep
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics

TIMES = ("time", "events_per_second", "targets_per_second", "seconds_left", "seconds", "stall_seconds", "bytes")


@dataclass(frozen=True)
class Trained:
    """The state of a training at its end on one rank, without times."""

    fingerprint: str
    reason: str
    state: dict[str, Any]
    losses: tuple[float, ...]
    num_averaged: int | None
    lines: str
    examples: str
    messages: list[str]


def train(
    world: World,
    job: Job,
    later: bool,
    broken: Sequence[int] = (),
    stop_after: int | None = None,
    save_at: int | None = None,
    factor: float = math.nan,
) -> Trained:
    """Train to the end.

    Args:
        world: All ranks.
        job: The run.
        later: Results are read after the next step was queued.
        broken: Steps with a wrong loss on the last rank.
        stop_after: The step at which a stop is requested.
        save_at: The step at which a checkpoint is requested.
        factor: The factor of a wrong loss.
    """
    events: list[dict[str, Any]] = []
    training: Training
    channel = Channel(
        send=events.append,
        stop_requested=lambda: stop_after is not None and training.state.step + 1 >= stop_after,
        saves_requested=lambda: int(save_at is not None and training.state.step + 1 >= save_at),
    )
    with mock.patch("trainer.loop.build.reads_later", lambda optimizers, world: later and optimizers.can_skip):
        training = Training(job, world, channel)
    whole_loss: Callable[..., Any] = training.built.model.loss
    last = world.rank == world.world_size - 1

    def loss(*arguments: Any) -> Any:
        return whole_loss(*arguments) * (factor if last and training.state.step + 1 in broken else 1.0)

    training.built.model.loss = loss
    outcome = training.run()
    lines = [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(job.run_dir / "metrics.jsonl")
        if line["kind"] != "checkpoint"  # written when the thread that saves has ended
    ]
    log = job.run_dir / "sample_log" / f"rank-{world.rank}.jsonl"
    return Trained(
        fingerprint(training),
        outcome.reason,
        training.state.to_saved(),
        training.state.recent_losses,
        None if training.ema is None else int(training.ema.num_updates),
        json.dumps(lines if world.is_first else []),  # as text, in which losses that are no numbers are equal
        log.read_text() if log.exists() else "",
        [event["text"] for event in events if event["kind"] == "warning"],
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("later")
    tiny_dataset(folder / "dataset")
    return folder


def job_in(data: Path, run_dir: Path, **sections: Any) -> Job:
    return tiny_job(run_dir, data / "dataset", **sections)


def item(**table: Any) -> dict[str, Any]:
    return {"item": {"dim": 8, "learning_rate": 0.1, **table}}


FORMS: dict[str, dict[str, Any]] = {
    "adamw, weight ema": {"train": {"ema_decay": 0.9, "weight_decay": 0.1}},
    "lion, clipped": {"train": {"optimizer": "lion", "clip_norm": 0.5, "weight_decay": 0.1, "learning_rate": 0.01}},
    "adagrad, fused adagrad": {"train": {"optimizer": "adagrad"}, "tables": item(optimizer="adagrad")},
    "sgd, fused sgd": {"train": {"optimizer": "sgd"}, "tables": item(optimizer="sgd")},
    "copied row-wise adagrad": {"tables": item(sharding="data_parallel", optimizer="rowwise_adagrad")},
    "copied adam": {"tables": item(sharding="data_parallel", optimizer="adam")},
    "copied adagrad, clipped": {
        "tables": item(sharding="data_parallel", optimizer="adagrad"),
        "train": {"clip_norm": 0.5},
    },
    "table-wise, micro-batches": {"tables": item(sharding="table_wise"), "train": {"micro_batch_tokens": 16}},
    "dropout, schedule": {
        "model": {"max_history": 8, "encoder": {"kind": "sasrec", "num_blocks": 1, "dropout": 0.3}},
        "train": {"schedule": "cosine", "warmup_steps": 4},
    },
    "evaluations": {
        "train": {"evaluate_every_epochs": 1, "early_stopping": {"metric": "ndcg@10", "patience": 9}, "ema_decay": 0.9},
        "checkpoint": {"every_steps": 3, "keep": 20},
    },
}
BROKEN = [1, 4, 5, 12]  # the first step too


def check_equal(results: list[Trained], expected: list[Trained]) -> None:
    for result, same in zip(results, expected, strict=True):
        for name in (field.name for field in fields(Trained)):
            assert getattr(result, name) == getattr(same, name), name


@pytest.mark.pairwise
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_reads_results_later_is_bit_identical(
    rank_pool: RankPool, data: Path, tmp_path: Path, form: str, world_size: int
) -> None:
    at_once = rank_pool.run(world_size, train, job_in(data, tmp_path / "at_once", **FORMS[form]), False, BROKEN)
    later = rank_pool.run(world_size, train, job_in(data, tmp_path / "later", **FORMS[form]), True, BROKEN)
    check_equal(later, at_once)
    assert later[0].state["skipped_steps"] == len(BROKEN)
    assert [line["step"] for line in json.loads(later[0].lines) if line["kind"] == "skipped"] == BROKEN


def test_rows_of_dynamic_ids_are_counted_and_reset_as_before(rank_pool: RankPool, lab: Lab) -> None:
    """The next batch assigns rows before the result of a step is known."""
    settings: Settings = {**FULL, "train.log_every_steps": 2, "train.max_steps": 9}
    results = [
        rank_pool.run(2, train, lab.job(lab.settings("events", settings)), later, [2, 3]) for later in (False, True)
    ]
    check_equal(results[1], results[0])
    evicted = [line["ids.colour.evicted"] for line in json.loads(results[1][0].lines) if line["kind"] == "train"]
    assert sum(evicted) > 0


def test_running_statistics_of_a_ranker_are_those_of_applied_steps(rank_pool: RankPool, lab: Lab) -> None:
    settings: Settings = {"model.kind": "din", "train.max_steps": 6, "train.log_every_steps": 1}
    results = [
        rank_pool.run(2, train, lab.job(lab.settings("impressions", settings)), later, [2, 4])
        for later in (False, True)
    ]
    check_equal(results[1], results[0])
    assert results[0][0].state["skipped_steps"] == 2


@pytest.mark.parametrize("later", [False, True])
def test_a_run_that_was_stopped_and_resumed_equals_the_one_that_was_not(
    rank_pool: RankPool, data: Path, tmp_path: Path, later: bool
) -> None:
    """The result of the last step before a checkpoint is part of it."""
    settings: dict[str, Any] = {
        "train": {"max_nonfinite_steps": 9, "ema_decay": 0.9},
        "guards": {"loss_spikes": {"window": 8, "action": "skip"}},
    }
    whole = rank_pool.run(2, train, job_in(data, tmp_path / "whole", **settings), False, [5, 6, 7])
    pieces = job_in(data, tmp_path / "pieces", **settings)
    stopped = rank_pool.run(2, train, pieces, later, [5, 6, 7], 6)
    assert [each.reason for each in stopped] == ["stopped"] * 2
    # The request is known one step later, after which nothing else is queued.
    (checkpoint,) = checkpoint_folder.committed(pieces.run_dir / "checkpoints")
    assert checkpoint_folder.read(checkpoint).step == (7 if later else 6)
    assert stopped[0].state["skipped_in_a_row"] == (3 if later else 2)
    resumed = rank_pool.run(2, train, pieces, later, [5, 6, 7])
    assert [each.fingerprint for each in resumed] == [each.fingerprint for each in whole]
    assert [each.losses for each in resumed] == [each.losses for each in whole]
    assert [each.examples for each in resumed] == [each.examples for each in whole]
    assert steps_of(resumed[0]) == steps_of(whole[0])


def steps_of(trained: Trained) -> str:
    return str([(line["step"], line["loss"]) for line in json.loads(trained.lines) if line["kind"] == "train"])


@pytest.mark.parametrize("later", [False, True])
def test_a_requested_checkpoint_is_saved_as_soon_as_the_request_is_known(
    rank_pool: RankPool, data: Path, tmp_path: Path, later: bool
) -> None:
    job = job_in(data, tmp_path / "run", checkpoint={"keep": 9})
    (trained, _) = rank_pool.run(2, train, job, later, (), None, 3)
    assert trained.reason == "finished"
    steps = [checkpoint_folder.read(path).step for path in checkpoint_folder.committed(job.run_dir / "checkpoints")]
    assert steps == [24, 4 if later else 3]


def test_a_loss_spike_is_skipped_by_the_limit_of_the_step_before(
    rank_pool: RankPool, data: Path, tmp_path: Path
) -> None:
    guards = {"loss_spikes": {"window": 8, "action": "skip"}}
    results = [
        rank_pool.run(
            2, train, job_in(data, tmp_path / str(later), guards=guards), later, [11, 12, 14], None, None, 1e3
        )
        for later in (False, True)
    ]
    check_equal(results[1], results[0])
    assert results[1][0].state["skipped_steps"] == 3
    assert any("No worker applied it" in text for text in results[1][0].messages)


def test_too_many_steps_that_are_not_finite_end_the_training_with_the_same_message(
    rank_pool: RankPool, data: Path, tmp_path: Path
) -> None:
    job = job_in(data, tmp_path / "run", train={"max_nonfinite_steps": 2})
    with pytest.raises(NonFiniteLossError, match="not finite in 3 steps in a row, up to step 6"):
        rank_pool.run(2, train, job, True, [2, 4, 5, 6, 7])
    assert checkpoint_folder.committed(job.run_dir / "checkpoints") == []


def broken_message(world: World, job: Job, later: bool) -> str:
    """Return the error of a training in which the update of the fifth step breaks dense weights."""
    with mock.patch("trainer.loop.build.reads_later", lambda optimizers, world: later and optimizers.can_skip):
        return run_until_broken(world, job, break_at=4)[0]


def test_weights_that_are_not_finite_end_the_training_with_the_same_message(
    rank_pool: RankPool, data: Path, tmp_path: Path
) -> None:
    jobs = [job_in(data, tmp_path / name, checkpoint={"every_steps": 2, "keep": 9}) for name in ("once", "later")]
    at_once, later = [rank_pool.run(2, broken_message, job, n > 0) for n, job in enumerate(jobs)]
    assert "not finite" in later[0]
    assert [text.replace("/later/", "/once/") for text in later] == at_once
    saved = [len(checkpoint_folder.committed(job.run_dir / "checkpoints")) for job in jobs]
    assert saved == [2, 2]


# The host


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("waits"))


def waits_of_steps(world: World, job: Job) -> tuple[list[str], list[str]]:
    """Return the waits of steps, after the first ones, and the order in which their parts ran."""
    waits: list[str] = []
    order: list[str] = []
    whole = TrainStep.start
    finish = TrainStep.finish
    update = TrainStep._update
    numbers = iter(range(100))

    def start(self: TrainStep, batch: Any, number: int, *rest: Any) -> Any:
        with recorded_waits() as waits_of_step:
            started = whole(self, batch, number, *rest)
        waits.extend(wait for wait in waits_of_step if number >= WARM and HOST_COUNTERS not in wait)
        return started

    def updated(self: TrainStep, *given: Any) -> None:
        order.append(f"update {given[-1]}")
        update(self, *given)

    def finished(self: TrainStep, started: Any) -> Any:
        order.append(f"read {next(numbers)}")
        return finish(self, started)

    with as_on_a_gpu(), mock.patch.multiple(TrainStep, start=start, _update=updated, finish=finished):
        training = Training(job, world, Channel(send=lambda event: None, stop_requested=lambda: False))
        assert training.step.reads_later
        training.run()
    return waits, order


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", MODELS)
def test_the_host_waits_for_no_step(rank_pool: RankPool, lab: Lab, name: str, clip: float | None) -> None:
    """Not even for its result, which it reads after the forward and backward pass of the next step were queued."""
    world, settings = MODELS[name]
    tables = {
        "tables.item.sharding": "table_wise"
    }  # of a row-wise one, TorchRec asks the device for the rows of each shard
    clipped = {} if clip is None else {"train.clip_norm": clip}
    job = lab.job(lab.settings(world, {"train.max_steps": 4, **settings, **tables, **clipped}))
    waits, order = rank_pool.run(1, waits_of_steps, job)[0]
    assert waits == []
    assert order == ["update 0", "read 0", "update 1", "read 1", "update 2", "read 2", "update 3", "read 3"]


def test_the_host_reads_a_result_when_the_next_step_is_queued(rank_pool: RankPool, lab: Lab) -> None:
    job = lab.job(lab.settings("events", {"train.max_steps": 3}))
    assert rank_pool.run(1, order_of_reads, job)[0] == [
        "loss",
        "copy",
        "loss",
        "read",
        "copy",
        "loss",
        "read",
        "copy",
        "read",
    ]


def order_of_reads(world: World, job: Job) -> list[str]:
    """Return the order of losses, copies to the host, and reads of these copies."""
    order: list[str] = []
    copy = HostCopy.__init__
    read = HostCopy.wait

    def copied(self: HostCopy, numbers: Any) -> None:
        order.append("copy")
        copy(self, numbers)

    def waited(self: HostCopy) -> list[float]:
        order.append("read")
        return read(self)

    with as_on_a_gpu(), mock.patch.multiple(HostCopy, __init__=copied, wait=waited):
        training = Training(job, world, Channel(send=lambda event: None, stop_requested=lambda: False))
        whole_loss: Callable[..., Any] = training.built.model.loss

        def loss(*arguments: Any) -> Any:
            order.append("loss")
            return whole_loss(*arguments)

        training.built.model.loss = loss
        training.run()
    return order


def reading(world: World, job: Job) -> tuple[bool, bool]:
    """Return whether results are read later on a CPU, and on a device for which reading a number means waiting."""
    channel = Channel(send=lambda event: None, stop_requested=lambda: False)
    on_a_cpu = Training(job, world, channel).step.reads_later
    with as_on_a_gpu():
        return on_a_cpu, Training(job, world, channel).step.reads_later


def test_the_device_and_the_optimizers_of_tables_decide_when_results_are_read(
    rank_pool: RankPool, data: Path, tmp_path: Path
) -> None:
    assert rank_pool.run(1, reading, job_in(data, tmp_path / "plain")) == [(False, True)]
    decaying = job_in(data, tmp_path / "decaying", tables=item(optimizer="rowwise_adagrad", weight_decay=0.01))
    assert rank_pool.run(1, reading, decaying) == [(False, False)]
