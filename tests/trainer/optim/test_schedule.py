"""Schedules as functions of the step, and their effect on fused optimizers compared with those of the unsharded model."""

from typing import Any

import pytest
import torch

from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.tables.optimizers import table_optimizer
from sharding.world import World
from tests.support.jobs import with_sections
from tests.trainer.loop.test_step import NUM_ROWS, Rig, State, batch_of, job_with, sequences_of
from trainer.config.job import Job
from trainer.config.train import TrainConfig
from trainer.optim.schedule import rate_factor

STEPS, WARMUP = 5, 2


def curve(num_steps: int, total_steps: int, **settings: Any) -> list[float]:
    train = TrainConfig(**settings)
    return [rate_factor(step, total_steps, train) for step in range(num_steps)]


def test_a_constant_schedule_is_constant():
    assert curve(10, 10, schedule="constant") == [1.0] * 10


@pytest.mark.parametrize("schedule", ["linear", "cosine", "warmup_stable_decay"])
@pytest.mark.parametrize("floor", [0.02, 0.0, 0.3])
def test_schedules_fall_from_the_full_rate_to_the_floor(schedule, floor):
    factors = curve(101, 100, schedule=schedule, schedule_floor=floor)
    assert factors[0] == pytest.approx(1.0)
    assert factors == sorted(factors, reverse=True)
    assert factors[100] == pytest.approx(floor)
    middle = {"linear": 0.5, "cosine": (1.0 + floor) / 2, "warmup_stable_decay": 1.0}[schedule]
    assert factors[50] == pytest.approx(middle)


def test_warmup_stable_decay_falls_over_the_last_share_only():
    factors = curve(100, 100, schedule="warmup_stable_decay", decay_share=0.1, schedule_floor=0.0, warmup_steps=4)
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4:91] == pytest.approx([1.0] * 87)
    assert factors[91:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_inverse_sqrt_falls_with_the_root_of_the_step_at_any_length():
    factors = curve(1000, 1000, schedule="inverse_sqrt", warmup_steps=9, schedule_floor=0.125)
    assert factors[9] == 1.0
    assert factors[39] == pytest.approx(0.5)
    assert factors[159] == pytest.approx(0.25)
    assert factors[999] == 0.125
    assert curve(1000, 50, schedule="inverse_sqrt", warmup_steps=9, schedule_floor=0.125) == factors


def test_warm_up_rises_in_equal_steps_to_the_full_rate():
    assert curve(6, 100, warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def factors(schedule: str) -> list[float]:
    return curve(STEPS, STEPS, schedule=schedule, warmup_steps=WARMUP)


def scheduled(world: World, job: Job, schedule: str) -> tuple[State, State]:
    rig = Rig.build(world, job)
    before = rig.weights()
    for step, factor in enumerate(factors(schedule)):
        rig.train(seed=step, number=step, factor=factor)
    return before, rig.weights()


def plain(weights: State, job: Job, rates: list[float]) -> State:
    """Train the unsharded model with the learning rates of each step set by hand."""
    model = NextItemModel(job.config.model, [TableSpec("item", NUM_ROWS, 8)], torch.device("cpu"))
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    table = [p for name, p in parameters.items() if "tables" in name]
    rest = [p for name, p in parameters.items() if "tables" not in name]
    optimizers: list[torch.optim.Optimizer] = [
        table_optimizer(table, job.config.tables["item"]),
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
    return with_sections(job, tables={"item": job.config.tables["item"].model_copy(update=settings)})


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
def test_a_schedule_equals_that_of_the_unsharded_model(rank_pool, tmp_path, optimizer, sharding, schedule):
    job = scheduled_job(tmp_path, optimizer, sharding)
    before, after = rank_pool.run(2, scheduled, job, schedule)[0]
    names = {name.replace("replicated", "sharded"): name for name in before}
    start = {own: before[name] for own, name in names.items()}
    expected, constant = plain(start, job, factors(schedule)), plain(start, job, [1.0] * STEPS)
    for own, name in names.items():
        torch.testing.assert_close(after[name], expected[own], rtol=1e-4, atol=1e-5, msg=name)
    table = next(own for own in names if "tables" in own)
    assert not torch.allclose(expected[table], constant[table], rtol=1e-2, atol=1e-2)
