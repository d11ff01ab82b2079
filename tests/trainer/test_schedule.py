"""Warm-up and decay reach the fused optimizers of sharded tables exactly as they reach a plain optimizer of the unsharded model."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from models.next_item import NextItemModel
from models.tables import TableSpec
from sharding.optimizers import table_optimizer
from sharding.ranks import Ranks
from tests.trainer.test_step import NUM_ROWS, Rig, State, batch_of, job_with, sequences_of
from trainer.job import Job
from trainer.step import rate_factor

STEPS, WARMUP = 5, 2


def factors(schedule: str) -> list[float]:
    return [rate_factor(step, STEPS, schedule, WARMUP) for step in range(STEPS)]


def scheduled(ranks: Ranks, job: Job, schedule: str) -> tuple[State, State]:
    rig = Rig.build(ranks, job)
    before = rig.weights()
    for step, factor in enumerate(factors(schedule)):
        rig.train(seed=step, number=step, factor=factor)
    return before, rig.weights()


def plain(weights: State, job: Job, rates: list[float]) -> State:
    """The unsharded model, with the learning rates of each step set by hand."""
    model = NextItemModel(job.model, [TableSpec("item", NUM_ROWS, 8)], torch.device("cpu"))
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    table = [p for name, p in parameters.items() if "tables" in name]
    rest = [p for name, p in parameters.items() if "tables" not in name]
    optimizers: list[torch.optim.Optimizer] = [
        table_optimizer(table, job.tables["item"]),
        torch.optim.SGD(rest, lr=0.1),
    ]
    bases = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    for step, rate in enumerate(rates):
        batch = batch_of(sequences_of(step), job)
        (model.loss(model.look_up(batch.items), batch) / batch.target_ids.numel()).backward()
        for optimizer, base in zip(optimizers, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate
            optimizer.step()
            optimizer.zero_grad()
    return {name: p.detach() for name, p in parameters.items()}


def scheduled_job(tmp_path: Any, optimizer: str, sharding: str) -> Job:
    job = job_with(tmp_path, "sgd", objective={"kind": "sampled_softmax", "num_negatives": 6})
    # Steps that are small enough for rounding not to grow from one to the next.
    settings = {"optimizer": optimizer, "sharding": sharding, "learning_rate": 0.1}
    return replace(job, tables={"item": job.tables["item"].model_copy(update=settings)})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("optimizer", "sharding"),
    [
        ("sgd", "row_wise"),
        ("adagrad", "row_wise"),
        ("adagrad", "column_wise"),
        ("rowwise_adagrad", "row_wise"),
        ("rowwise_adagrad", "table_wise"),
        ("adagrad", "data_parallel"),
    ],
)
def test_a_schedule_is_that_of_the_unsharded_model(rank_pool, tmp_path, optimizer, sharding, schedule):
    job = scheduled_job(tmp_path, optimizer, sharding)
    before, after = rank_pool.run(2, scheduled, job, schedule)[0]
    names = {name.replace("replicated", "sharded"): name for name in before}
    start = {own: before[name] for own, name in names.items()}
    expected, constant = plain(start, job, factors(schedule)), plain(start, job, [1.0] * STEPS)
    for own, name in names.items():
        torch.testing.assert_close(after[name], expected[own], rtol=1e-4, atol=1e-5, msg=name)
    table = next(own for own in names if "tables" in own)
    assert not torch.allclose(expected[table], constant[table], rtol=1e-2, atol=1e-2)
