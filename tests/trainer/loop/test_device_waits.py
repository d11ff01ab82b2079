"""A step makes the host wait for its device once: for the numbers that decide whether the step is applied."""

from typing import Any
from unittest import mock

import pytest
import torch

from sharding.tables.gradient_norm import HostRows, squared_row_norm
from sharding.world import World
from tests.settings.entry import Settings
from tests.settings.lab import Lab
from tests.support.device_work import as_on_a_gpu, launches, recorded_waits
from tests.support.trained_runs import lab_in
from tests.trainer.loop.test_clipping import ASKED, WIDTHS, gradient_of
from trainer.config.job import SILENT, Job
from trainer.loop.host_copy import HostCopy
from trainer.loop.step import StartedStep, TrainStep
from trainer.loop.step_result import StepResult
from trainer.loop.train import Training

WARM = 2  # steps after which optimizers have their state
# fbgemm reads its counter of updates, and the widths of tables, which are on the CPU after the first step.
HOST_COUNTERS = "split_table_batched_embeddings_ops_training.py"
# TorchRec asks the device how many rows go to each shard of a row-wise table.
ROW_WISE = "torchrec/sparse/jagged_tensor.py"

SAMPLED: Settings = {"model.objective": {"kind": "sampled_softmax", "num_negatives": 4}}
MODELS: dict[str, tuple[str, Settings]] = {
    "sasrec": ("events", {"model.encoder.kind": "sasrec"}),
    "sasrec with dropout, sampled": ("events", {**SAMPLED, "model.encoder.dropout": 0.2}),
    "hstu": ("events", {"model.encoder.kind": "hstu"}),
    "din": ("impressions", {"model.kind": "din"}),
    "ranker with hstu": ("impressions", {"model.kind": "hstu"}),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return lab_in(tmp_path_factory.mktemp("waits"))


def trained_steps(world: World, job: Job, on_a_gpu: bool) -> tuple[list[str], list[StepResult]]:
    """Train a job; return the waits of its steps, after the first ones, and the results of all."""
    training = Training(job, world, SILENT)
    whole = TrainStep.start
    finish = TrainStep.finish
    waits: list[str] = []
    results: list[StepResult] = []

    def start(self: TrainStep, batch: Any, number: int, *rest: Any) -> StartedStep:
        with recorded_waits() as waits_of_step:
            started = whole(self, batch, number, *rest)
        waits.extend(wait for wait in waits_of_step if number >= WARM and HOST_COUNTERS not in wait)
        return started

    def finished(self: TrainStep, started: StartedStep) -> StepResult:
        with recorded_waits() as waits_of_end:
            results.append(finish(self, started))
        waits.extend(waits_of_end)
        return results[-1]

    with mock.patch.object(TrainStep, "start", start), mock.patch.object(TrainStep, "finish", finished):
        if not on_a_gpu:
            training.run()
            return waits, results
        with as_on_a_gpu():
            training.run()
    return waits, results


def job_of(lab: Lab, world: str, settings: Settings) -> Job:
    return lab.job(lab.settings(world, {"train.max_steps": 4, **settings}))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_waits_for_nothing_but_its_decision(lab, rank_pool, name, clip):
    world, settings = MODELS[name]
    settings = settings if clip is None else {**settings, "train.clip_norm": clip}
    expected = rank_pool.run(1, trained_steps, job_of(lab, world, settings), False)[0][1]
    waits, results = rank_pool.run(1, trained_steps, job_of(lab, world, settings), True)[0]
    assert [wait for wait in waits if ROW_WISE not in wait] == []
    assert len(waits) <= len(results) - WARM  # one in each step
    assert len(results) == len(expected) > WARM
    if "dropout" in name:  # GPUs draw other numbers
        return
    for result, same in zip(results, expected, strict=True):
        assert result.loss == pytest.approx(same.loss, rel=1e-5)
        assert (result.grad_norm is None) == (clip is None)
        if clip is not None:
            assert result.grad_norm == pytest.approx(same.grad_norm, rel=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "din"])
def test_whole_tables_need_no_number_of_the_device(lab, rank_pool, name):
    world, settings = MODELS[name]
    job = job_of(lab, world, {**settings, "train.clip_norm": 0.05, "tables.item.sharding": "table_wise"})
    assert rank_pool.run(1, trained_steps, job, True)[0][0] == []


def test_the_decision_is_read_in_one_copy(lab, rank_pool):
    job = job_of(lab, "events", {"train.clip_norm": 0.05})
    assert rank_pool.run(1, copies_of_steps, job) == [[1, 1, 1, 1]]


@pytest.mark.parametrize("name", MODELS)
def test_a_small_step_launches_few_kernels(lab, rank_pool, name):
    """Chunks of larger batches are counted in tests/models/test_launches.py."""
    world, settings = MODELS[name]
    job = job_of(lab, world, {**settings, "train.clip_norm": 0.05})
    assert max(rank_pool.run(1, launches_of_steps, job)[0]) < 600


def launches_of_steps(world: World, job: Job) -> list[int]:
    """Return the number of kernels that each step would launch on a GPU."""
    training = Training(job, world, SILENT)
    whole = TrainStep.start
    counts: list[int] = []

    def start(self: TrainStep, *given: Any) -> StartedStep:
        started: list[StartedStep] = []
        with as_on_a_gpu():
            counts.append(launches(lambda: started.append(whole(self, *given))))
        return started[0]

    with mock.patch.object(TrainStep, "start", start):
        training.run()
    return counts


def copies_of_steps(world: World, job: Job) -> list[int]:
    """Return the number of copies to the host that each step makes."""
    training = Training(job, world, SILENT)
    whole = TrainStep.start
    copies: list[int] = []

    def start(self: TrainStep, *given: Any) -> StartedStep:
        with mock.patch("trainer.loop.step.HostCopy", wraps=HostCopy) as copied:
            started = whole(self, *given)
        copies.append(copied.call_count)
        return started

    with mock.patch.object(TrainStep, "start", start):
        training.run()
    return copies


def test_waits_are_recorded():
    numbers = torch.tensor([3, 1, 3])
    for work in (
        lambda: numbers.sum().item(),
        lambda: numbers.tolist(),
        lambda: bool(numbers.any()),
        lambda: numbers[numbers > 1],
        lambda: numbers.unique(),
        lambda: numbers.bincount(),
        lambda: numbers.nonzero(),
        lambda: numbers.masked_select(numbers > 1),
        lambda: numbers.repeat_interleave(numbers),
        lambda: numbers.cpu(),
    ):
        with recorded_waits() as waits:
            work()
        assert len(waits) >= 1
        assert __file__ in waits[0]
    with recorded_waits() as waits:
        numbers.repeat_interleave(numbers, output_size=7)
        numbers[numbers - 1]  # an index of known size
        torch.where(numbers > 1, numbers, 0).sum()
    assert waits == []


# The norm of the gradient of rows


def row_norms(world: World) -> tuple[float, float, list[str]]:
    """Return the norm as on a CPU, and as on a device for which reading a number means waiting, with its waits."""
    rows = {table: torch.tensor(ids, dtype=torch.int64) for table, ids in ASKED[world.rank].items()}
    gradients = {table: gradient_of(world.rank, table) for table in rows}
    host = HostRows({table: numbers.clone() for table, numbers in rows.items()}, world.on_cpu())
    plain = squared_row_norm(rows, gradients, world)
    with recorded_waits() as waits:
        square = squared_row_norm(rows, gradients, world, host)
    of_device = [wait for wait in waits if "bincount" not in wait and "tolist" not in wait]
    return float(plain), float(square), of_device


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_norm_of_rows_needs_no_number_of_the_device(rank_pool, world_size):
    assert {*WIDTHS} == {*ASKED[0]}
    for plain, square, waits in rank_pool.run(world_size, row_norms):
        assert square == pytest.approx(plain, rel=1e-12)
        assert waits == []


def test_numbers_arrive_on_the_host_as_they_are():
    numbers = torch.tensor([1.5, float("nan"), 2.0**60], dtype=torch.float64)
    arrived = HostCopy(numbers).wait()
    assert arrived[0] == 1.5
    assert arrived[1] != arrived[1]
    assert arrived[2] == 2.0**60
