"""Clipping uses the norm of the whole gradient, of tables and dense weights, at every world size."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.tables.gradient_norm import squared_row_norm
from sharding.tables.optimizers import table_optimizer
from sharding.world import World
from tests.support.jobs import with_sections
from tests.trainer.loop.test_step import NUM_ROWS, Rig, State, batch_of, job_with, sequences_of
from trainer.config.job import Job
from trainer.loop.step_result import StepResult

STEPS = 3
TABLE_RATE, DENSE_RATE = 0.5, 0.1  # as in job_with


# The norm of rows that several ranks looked up

ASKED = [
    {"item": [3, 7, 7, 1], "brand": [0]},
    {"item": [], "brand": [0, 4, 5]},
    {"item": [7, 2, 3, 9, 11], "brand": []},
]
WIDTHS = {"item": 4, "brand": 8}


def gradient_of(rank: int, table: str) -> Tensor:
    generator = torch.Generator().manual_seed(100 * rank + len(table))
    return torch.randn((len(ASKED[rank][table]), WIDTHS[table]), generator=generator)


def row_norm(world: World) -> float:
    rows = {table: torch.tensor(ids, dtype=torch.int64) for table, ids in ASKED[world.rank].items()}
    return float(squared_row_norm(rows, {table: gradient_of(world.rank, table) for table in rows}, world))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_that_several_ranks_looked_up_are_added_before_they_count(rank_pool, world_size):
    expected = separate = 0.0
    for table, width in WIDTHS.items():
        whole = torch.zeros((20, width))
        for rank in range(world_size):
            gradient = gradient_of(rank, table)
            whole.index_add_(0, torch.tensor(ASKED[rank][table], dtype=torch.int64), gradient)
            separate += float(gradient.square().sum())
        expected += float(whole.square().sum())
    norms = rank_pool.run(world_size, row_norm)
    assert norms == pytest.approx([expected] * world_size, rel=1e-6)
    assert len(set(norms)) == 1
    assert abs(separate - expected) > 0.01 * expected


# Training with clipping


def clipped(world: World, job: Job) -> tuple[State, list[StepResult], State]:
    rig = Rig.build(world, job)
    before = rig.weights()
    return before, [rig.train(seed=n, number=n) for n in range(STEPS)], rig.weights()


def plain_training(weights: State, job: Job) -> tuple[list[float], State]:
    """Train the unsharded model with torch's own clipping, and return (norms, weights)."""
    model = NextItemModel(job.config.model, [TableSpec("item", NUM_ROWS, 8)], torch.device("cpu"))
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())
    table = [p for name, p in parameters.items() if "tables" in name]
    rest = [p for name, p in parameters.items() if "tables" not in name]
    dense = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[job.config.train.optimizer]
    optimizers = [table_optimizer(table, job.config.tables["item"]), dense(rest, lr=DENSE_RATE)]
    norms = []
    for step in range(STEPS):
        batch = batch_of(sequences_of(step), job)
        (model.loss(model.look_up(batch.items), batch) / batch.target_ids.numel()).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), job.config.train.clip_norm)))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return norms, {name: p.detach() for name, p in parameters.items()}


def clipping_job(tmp_path: Any, clip_norm: float | None, optimizer: str = "sgd", **table: Any) -> Job:
    # Sampled negatives: ranks look up different items, some of them the same.
    objective = {"kind": "sampled_softmax", "num_negatives": 6}
    job = job_with(tmp_path, optimizer, optimizer, objective=objective)
    tables = {"item": job.config.tables["item"].model_copy(update=table)}
    return with_sections(job, tables=tables, train=job.config.train.model_copy(update={"clip_norm": clip_norm}))


@pytest.mark.parametrize("sharding", ["row_wise", "data_parallel"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_clipping_equals_that_of_the_unsharded_model(rank_pool, tmp_path, world_size, optimizer, sharding):
    job = clipping_job(tmp_path, 0.05, optimizer, sharding=sharding)
    before, results, after = rank_pool.run(world_size, clipped, job)[0]
    names = {name.replace("replicated", "sharded"): name for name in before}
    norms, expected = plain_training({plain: before[name] for plain, name in names.items()}, job)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 2 * 0.05  # every step is clipped
    for plain, name in names.items():
        torch.testing.assert_close(after[name], expected[plain], rtol=1e-4, atol=1e-5, msg=name)


def clipped_with_rounding(world: World, job: Job) -> tuple[list[float | None], State]:
    """Train with a different rounding of the norm of rows on every rank."""

    def rounded(*given: Any) -> Tensor:
        return squared_row_norm(*given) * (1.0 + world.rank * 1e-9)

    with mock.patch("trainer.loop.step.squared_row_norm", rounded):
        _, results, after = clipped(world, job)
    return [result.grad_norm for result in results], {n: p for n, p in after.items() if "tables" not in n}


def test_all_ranks_clip_by_the_same_norm_bit_for_bit(rank_pool, tmp_path):
    (norms, weights), *others = rank_pool.run(3, clipped_with_rounding, clipping_job(tmp_path, 0.05))
    assert min(norms) > 2 * 0.05
    for found, theirs in others:
        assert found == norms
        assert all(torch.equal(theirs[name], weights[name]) for name in weights)


def test_a_gradient_within_the_norm_does_not_change(rank_pool, tmp_path):
    loose, without = (rank_pool.run(2, clipped, clipping_job(tmp_path, clip_norm))[0] for clip_norm in (1000.0, None))
    assert all(torch.equal(loose[2][name], without[2][name]) for name in without[2])
    assert all(result.grad_norm is not None for result in loose[1])
    assert all(result.grad_norm is None for result in without[1])


def test_clipping_changes_the_weights(rank_pool, tmp_path):
    tight, without = (rank_pool.run(2, clipped, clipping_job(tmp_path, clip_norm))[0] for clip_norm in (0.05, None))
    table = next(name for name in without[2] if "tables" in name)
    assert (tight[2][table] - tight[0][table]).norm() < 0.5 * (without[2][table] - without[0][table]).norm()


class _HugeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.full_like(gradients[0], 3e38)


def overflow(world: World, job: Job) -> tuple[StepResult, bool]:
    rig = Rig.build(world, job)
    before = rig.local()
    model: Any = rig.built.model
    whole = type(model).loss
    model.loss = lambda rows, batch: whole(model, {"item": _HugeGradient.apply(rows["item"])}, batch)
    result = rig.train(seed=1)
    after = rig.local()
    return result, all(torch.equal(before[name], after[name]) for name in before)


def test_finite_gradients_without_a_finite_sum_are_applied_nowhere(rank_pool, tmp_path):
    for result, unchanged in rank_pool.run(2, overflow, clipping_job(tmp_path, 1.0)):
        assert not result.finite
        assert not result.applied
        assert unchanged
