"""One step: applied on every rank or on none, with the gradient of the global batch under any division into shares."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from models.batches.history_batch import HistoryBatch, build_batch
from models.batches.micro_batches import with_cuts
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.world import World
from tests.support.datasets import manifest_of_items
from tests.support.jobs import tiny_job, with_sections
from trainer.checkpoint.keys import tensors_of
from trainer.config.job import Job
from trainer.loop.build import Built, build_ema, build_model, build_optimizers, build_step
from trainer.loop.step import TrainStep
from trainer.loop.step_clock import StepClock
from trainer.loop.step_result import StepResult

NUM_ROWS = 30
NEGATIVES = np.asarray([3, 7, 7, 12, 29, 1])
State = dict[str, Tensor]


def sequences_of(seed: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, NUM_ROWS, size=length).tolist() for length in (9, 2, 4, 8, 3, 6)]


def shared(sequences: list[list[int]], world_size: int) -> list[list[list[int]]]:
    """Return uneven shares. On three and four ranks the second has no history."""
    match world_size:
        case 1:
            return [sequences]
        case 2:
            return [sequences[:5], sequences[5:]]
        case 4:
            return [sequences[:2], [], sequences[2:5], sequences[5:]]
        case _:
            return [sequences[:2], [], sequences[2:]]


def batch_of(sequences: list[list[int]], job: Job) -> HistoryBatch:
    sequences = sequences or [[]]
    sampled = job.config.model.objective.kind == "sampled_softmax"
    inputs, targets = [s[:-1] for s in sequences], [s[1:] for s in sequences]
    return build_batch(
        np.arange(len(sequences)),
        np.concatenate(([0], np.cumsum([len(i) for i in inputs]))).astype(np.int64),
        np.asarray([item for i in inputs for item in i], dtype=np.int64),
        np.asarray([item for t in targets for item in t], dtype=np.int64),
        NEGATIVES if sampled else np.zeros(0, dtype=np.int64),
        Catalogue(NUM_ROWS, NUM_ROWS),
        not sampled,
    )


def job_with(
    tmp_path, optimizer: str = "adamw", table: str = "rowwise_adagrad", dropout: float = 0.0, **model: Any
) -> Job:
    return tiny_job(
        tmp_path,
        tmp_path,
        model={"encoder": {"kind": "sasrec", "num_blocks": 1, "dropout": dropout}, **model},
        tables={"item": {"dim": 8, "optimizer": table, "learning_rate": 0.5, "init_std": 0.5}},
        train={"optimizer": optimizer, "learning_rate": 0.1, "ema_decay": 0.9},
    )


@dataclass(frozen=True)
class Rig:
    """A model with its optimizers on one rank, ready to step."""

    job: Job
    world: World
    built: Built
    step: TrainStep

    @staticmethod
    def build(world: World, job: Job) -> "Rig":
        torch.set_num_threads(1)
        built = build_model(job, manifest_of_items(NUM_ROWS - 1), world)
        built.model.train()
        optimizers, ema = build_optimizers(built, job.config.train), build_ema(job, built)
        step = build_step(job, built, optimizers, ema, world, StepClock(world.device))
        return Rig(job, world, built, step)

    def train(self, seed: int, number: int = 0, factor: float = 1.0, stop: bool = False) -> StepResult:
        share = shared(sequences_of(seed), self.world.world_size)[self.world.rank]
        batch = with_cuts(batch_of(share, self.job), self.job.config.train.micro_batch_tokens)
        return self.step(batch, number, factor, stop)

    def local(self) -> State:
        """Return copies of all weights and optimizer slots that this rank holds."""
        state = {}
        built, step = self.built, self.step
        for name, value in tensors_of(built.sharded_model, built.tables, step.optimizers, ema=step.ema).items():
            if isinstance(value, ShardedTensor):
                state.update({f"{name}/{n}": s.tensor.detach().clone() for n, s in enumerate(value.local_shards())})
            else:
                state[name] = torch.as_tensor(value).detach().clone()
        return state

    def weights(self) -> State:
        """Return all weights, whole on the first rank. Collective."""
        whole = {}
        for name, value in self.built.sharded_model.state_dict().items():
            if isinstance(value, ShardedTensor):
                out = torch.zeros(value.size())
                value.gather(0, out if self.world.is_first else None)
                whole[name] = out
            else:
                whole[name] = value.detach().clone()
        return whole


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# All or none


class _PoisonGradient(torch.autograd.Function):
    """The identity, with one number in its gradient that is not finite."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        broken = gradients[0].clone()
        broken[1, 2] = float("inf")
        return broken


def poison(rig: Rig, kind: str) -> Callable[[], None]:
    """Break this rank's next step, and return a function that undoes it."""
    model: Any = rig.built.model
    whole = type(model).loss
    match kind:
        case "loss is nan":
            model.loss = lambda rows, batch: whole(model, rows, batch) * float("nan")
        case "loss of the second piece is nan":
            factors = iter([1.0, float("nan"), *[1.0] * 9])
            model.loss = lambda rows, batch: whole(model, rows, batch) * next(factors)
        case "loss is infinite":
            model.loss = lambda rows, batch: whole(model, rows, batch) + float("inf")
        case "gradient of the rows":
            model.loss = lambda rows, batch: whole(model, {"item": _PoisonGradient.apply(rows["item"])}, batch)
        case "gradient of a dense weight":
            weight = model.encoder.blocks[0].feed_forward.into.weight
            return weight.register_hook(lambda gradient: gradient * float("nan")).remove
    return lambda: delattr(model, "loss")


@dataclass(frozen=True)
class Skipped:
    result: StepResult
    before: State
    after: State
    next_result: StepResult
    final: State


def skip_one(world: World, job: Job, kind: str, broken_rank: int) -> Skipped:
    """Run a good step, a step that is broken on one rank, and a good one."""
    return skip_one_of(Rig.build(world, job), kind, broken_rank)


def skip_one_of(rig: Rig, kind: str, broken_rank: int) -> Skipped:
    """Run these steps with a given model."""
    rig.train(seed=1)
    before = rig.local()
    repair = poison(rig, kind) if rig.world.rank == broken_rank else None
    result = rig.train(seed=2, number=1)
    after = rig.local()
    if repair is not None:
        repair()
    return Skipped(result, before, after, rig.train(seed=3, number=2), rig.local())


def skip_none(world: World, job: Job) -> State:
    """Run the same without the broken step."""
    rig = Rig.build(world, job)
    rig.train(seed=1)
    rig.train(seed=3, number=2)
    return rig.local()


@pytest.mark.parametrize("broken_rank", [0, 1])
@pytest.mark.parametrize(
    "kind", ["loss is nan", "loss is infinite", "gradient of the rows", "gradient of a dense weight"]
)
def test_a_step_that_is_not_finite_on_one_rank_is_applied_on_no_rank(rank_pool, tmp_path, kind, broken_rank):
    job = job_with(tmp_path)
    outcomes = rank_pool.run(2, skip_one, job, kind, broken_rank)
    for outcome in outcomes:
        assert not outcome.result.finite
        assert not outcome.result.applied
        assert equal(outcome.after, outcome.before)
        assert outcome.next_result.applied
        assert not equal(outcome.final, outcome.after)
    assert repr(outcomes[0].result) == repr(outcomes[1].result)
    clean = rank_pool.run(2, skip_none, job)
    assert all(equal(outcome.final, expected) for outcome, expected in zip(outcomes, clean, strict=True))


def step_without_targets(world: World, job: Job) -> tuple[StepResult, State, State, StepResult]:
    rig = Rig.build(world, job)
    rig.train(seed=1)
    before = rig.local()
    # A history of one event has no input with a target.
    result = rig.step(batch_of([[4], []] if world.is_first else [], job), 1, 1.0, False)
    return result, before, rig.local(), rig.train(seed=2, number=2)


@pytest.mark.parametrize("objective", ["full_softmax", "sampled_softmax"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_batch_without_targets_changes_nothing(rank_pool, tmp_path, world_size, objective):
    job = job_with(tmp_path, objective={"kind": objective})
    for result, before, after, later in rank_pool.run(world_size, step_without_targets, job):
        assert (result.num_targets, result.num_events, result.finite, result.applied) == (0, 0, True, False)
        assert np.isnan(result.loss)
        assert equal(after, before)
        assert later.applied


# The gradient of the global batch


def plain_step(weights: State, job: Job, sequences: list[list[int]]) -> tuple[State, float]:
    """Run one step of plain SGD on one device, on the mean over all targets. Return (weights, loss)."""
    model = NextItemModel(job.config.model, [TableSpec("item", NUM_ROWS, 8)], torch.device("cpu"))
    model.load_state_dict(weights)
    batch = batch_of(sequences, job)
    loss = model.loss(model.look_up(batch.items), batch) / batch.target_ids.numel()
    loss.backward()
    rates = {name: 0.5 if "tables" in name else 0.1 for name, _ in model.named_parameters()}
    return {name: (p - rates[name] * p.grad).detach() for name, p in model.named_parameters()}, loss.item()


def sgd_step(world: World, job: Job, factor: float = 1.0) -> tuple[State, StepResult, State]:
    rig = Rig.build(world, job)
    before = rig.weights()
    result = rig.train(seed=1, factor=factor)
    return before, result, rig.weights()


OBJECTIVES = [
    {"kind": "full_softmax"},
    {"kind": "sampled_softmax", "num_negatives": 6},
    {"kind": "full_softmax", "normalize": True, "temperature": 0.2},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_step_is_that_of_the_global_batch(rank_pool, tmp_path, world_size, objective):
    job = job_with(tmp_path, "sgd", "sgd", objective=objective)
    results = rank_pool.run(world_size, sgd_step, job)
    before, _, after = results[0]
    expected, loss = plain_step(before, job, sequences_of(1))
    num_targets = sum(len(s) - 1 for s in sequences_of(1))
    for _, result, _ in results:
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert (result.num_targets, result.num_events) == (num_targets, num_targets)
        assert result.applied
    assert expected.keys() == after.keys()
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6, msg=name)
        if "bias" not in name:  # attention ignores a constant added to all keys
            assert not torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_step_in_micro_batches_is_the_same_step(rank_pool, tmp_path, world_size, objective):
    job = job_with(tmp_path, "sgd", "sgd", objective=objective)
    pieces = with_sections(job, train=job.config.train.model_copy(update={"micro_batch_tokens": 8}))
    whole = rank_pool.run(world_size, sgd_step, job)[0]
    before, result, after = rank_pool.run(world_size, sgd_step, pieces)[0]
    assert result.loss == pytest.approx(whole[1].loss, rel=1e-6)
    assert replace(result, loss=0.0) == replace(whole[1], loss=0.0)
    assert equal(before, whole[0])
    for name, expected in whole[2].items():
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_micro_batch_that_is_not_finite_is_applied_nowhere(rank_pool, tmp_path):
    job = job_with(tmp_path)
    job = with_sections(job, train=job.config.train.model_copy(update={"micro_batch_tokens": 8}))
    for outcome in rank_pool.run(2, skip_one, job, "loss of the second piece is nan", 0):
        assert not outcome.result.finite
        assert equal(outcome.after, outcome.before)
        assert outcome.next_result.applied


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_in_bfloat16_is_nearly_the_same_step(rank_pool, tmp_path, world_size, objective):
    """Its products have 8 bits: losses come within 1 %, and the steps of the weights point where those of float32 do."""
    job = job_with(tmp_path, "sgd", "sgd", objective=objective)
    low = with_sections(job, train=job.config.train.model_copy(update={"precision": "bfloat16"}))
    before, full_result, full = rank_pool.run(world_size, sgd_step, job)[0]
    _, result, after = rank_pool.run(world_size, sgd_step, low)[0]
    assert result.loss == pytest.approx(full_result.loss, rel=1e-2)
    assert result.loss != full_result.loss
    for name, start in before.items():
        if "bias" not in name:
            assert after[name].dtype == torch.float32
            moved, expected = (after[name] - start).flatten(), (full[name] - start).flatten()
            assert torch.cosine_similarity(moved, expected, dim=0) > 0.99, name
            # The float32 weights keep updates that bfloat16 would round to nothing.
            assert not torch.equal(after[name], after[name].bfloat16().float()), name


def dtypes(world: World, job: Job) -> set[torch.dtype]:
    rig = Rig.build(world, job)
    rig.train(seed=1)
    return {tensor.dtype for tensor in rig.local().values() if tensor.is_floating_point()}


def test_all_stored_tensors_are_float32_in_bfloat16_training(rank_pool, tmp_path):
    job = job_with(tmp_path)
    low = with_sections(job, train=job.config.train.model_copy(update={"precision": "bfloat16"}))
    assert rank_pool.run(1, dtypes, low) == [{torch.float32}]


def test_dense_weights_are_bit_identical_on_all_ranks_after_a_step(rank_pool, tmp_path):
    results = rank_pool.run(3, sgd_step, job_with(tmp_path))
    for _, _, after in results[1:]:
        dense = [name for name in after if "tables" not in name]
        assert len(dense) > 10
        assert all(torch.equal(after[name], results[0][2][name]) for name in dense)


def test_the_rate_factor_scales_dense_weights_and_tables(rank_pool, tmp_path):
    job = job_with(tmp_path, "sgd", "sgd")
    before, _, full = rank_pool.run(1, sgd_step, job, 1.0)[0]
    _, _, quarter = rank_pool.run(1, sgd_step, job, 0.25)[0]
    for name, start in before.items():
        torch.testing.assert_close(quarter[name] - start, 0.25 * (full[name] - start), rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("sharding", ["row_wise", "data_parallel"])
def test_tables_may_be_left_out_of_the_schedule(rank_pool, tmp_path, sharding):
    job = job_with(tmp_path, "sgd", "sgd")
    tables = {"item": job.config.tables["item"].model_copy(update={"sharding": sharding})}
    job = with_sections(job, tables=tables, train=job.config.train.model_copy(update={"schedule_tables": False}))
    before, _, full = rank_pool.run(2, sgd_step, job, 1.0)[0]
    _, _, quarter = rank_pool.run(2, sgd_step, job, 0.25)[0]
    for name, start in before.items():
        share = 1.0 if "tables" in name else 0.25
        torch.testing.assert_close(quarter[name] - start, share * (full[name] - start), rtol=1e-3, atol=1e-6, msg=name)


def ask_to_stop(world: World, job: Job, asking_rank: int) -> list[bool]:
    rig = Rig.build(world, job)
    return [rig.train(seed=1, stop=stop and world.rank == asking_rank).stop_requested for stop in (False, True, False)]


@pytest.mark.parametrize("asking_rank", [0, 1])
def test_a_request_to_stop_reaches_every_rank_in_the_same_step(rank_pool, tmp_path, asking_rank):
    assert rank_pool.run(2, ask_to_stop, job_with(tmp_path), asking_rank) == [[False, True, False]] * 2


def losses_with_dropout(world: World, job: Job, numbers: list[int], noise: int) -> list[float]:
    losses = []
    for number in numbers:
        rig = Rig.build(world, job)
        torch.manual_seed(noise)  # what else the process drew must not matter
        losses.append(rig.train(seed=1, number=number).loss)
    return losses


def test_dropout_is_a_function_of_seed_and_step(rank_pool, tmp_path):
    job = job_with(tmp_path, dropout=0.5)
    first = rank_pool.run(2, losses_with_dropout, job, [7, 8, 7], 1)[0]
    second = rank_pool.run(2, losses_with_dropout, job, [7, 8, 7], 2)[0]
    assert first == second
    assert first[0] == first[2] != first[1]
