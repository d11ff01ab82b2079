"""Sums of dense gradients that overlap the backward pass give the steps of one sum after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sharding.world import World
from tests.support.jobs import with_sections
from tests.trainer.loop.test_step import Rig, Skipped, State, equal, job_with, skip_none, skip_one_of
from trainer.config.job import Job
from trainer.loop.step_result import StepResult
from trainer.optim.gradient_buckets import GradientBuckets

STEPS = 3
SMALL = 512  # bytes of a bucket: most weights have their own


class SumAfterBackward(GradientBuckets):
    """The reference: one sum of the whole vector, after the backward pass."""

    @contextmanager
    def started_in_backward(self) -> Iterator[None]:
        yield
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self._flat = torch.cat([torch.zeros(0), *(gradient.flatten() for gradient in gradients)])
        self._finite = [self._flat.isfinite().all()]
        self._world.sum(self._flat)


class Observed(GradientBuckets):
    """Buckets that count the sums that started in the backward pass."""

    num_early = 0

    def _start(self, bucket: range) -> None:
        self.num_early += self._listening
        super()._start(bucket)


def with_sums(rig: Rig, kind: type[GradientBuckets], bucket_bytes: int = SMALL) -> Rig:
    """Return the same model with other sums."""
    sums = kind(rig.step.optimizers.dense_parameters, rig.world, bucket_bytes)
    return replace(rig, step=replace(rig.step, dense_sums=sums))


@dataclass(frozen=True)
class Trained:
    """A short training of one rank."""

    results: list[StepResult]
    state: State


def trained(world: World, job: Job, kind: type[GradientBuckets], bucket_bytes: int = SMALL) -> Trained:
    rig = with_sums(Rig.build(world, job), kind, bucket_bytes)
    return Trained([rig.train(seed=n, number=n) for n in range(STEPS)], rig.local())


def variant(tmp_path: Any, name: str) -> Job:
    """Return a job: another objective, clipping, micro-batches, a copied table or all of them."""
    full = {"kind": "full_softmax"}
    job = job_with(tmp_path, dropout=0.2, objective=full, encoder={"kind": "sasrec", "num_blocks": 2, "dropout": 0.2})
    train: dict[str, Any] = {}
    if name in ("clipped", "all"):
        train["clip_norm"] = 0.05
    if name in ("micro-batches", "all"):
        train["micro_batch_tokens"] = 8
    if name in ("copied table", "all"):
        tables = {"item": job.config.tables["item"].model_copy(update={"sharding": "data_parallel"})}
        job = with_sections(job, tables=tables)
    return with_sections(job, train=job.config.train.model_copy(update=train))


VARIANTS = ["plain", "clipped", "micro-batches", "copied table", "all"]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_train_with_the_bits_of_one_sum_after_the_backward_pass(rank_pool, tmp_path, name):
    job = variant(tmp_path, name)
    expected = rank_pool.run(2, trained, job, SumAfterBackward)
    overlapping = rank_pool.run(2, trained, job, GradientBuckets)
    for own, same in zip(overlapping, expected, strict=True):
        assert own.results == same.results
        assert all(result.applied for result in own.results)
        assert equal(own.state, same.state)


@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("world_size", [3, 4])
def test_more_ranks_train_equally_in_every_run(rank_pool, tmp_path, world_size, name):
    """One bucket has the bits of one sum. Several are rounded differently, in the same way in every run."""
    job = variant(tmp_path, name)
    expected = rank_pool.run(world_size, trained, job, SumAfterBackward)
    whole = rank_pool.run(world_size, trained, job, GradientBuckets, 1 << 20)
    first, second = (rank_pool.run(world_size, trained, job, GradientBuckets) for _ in range(2))
    for rank in range(world_size):
        assert equal(whole[rank].state, expected[rank].state)
        assert equal(first[rank].state, second[rank].state)
        for own, same in zip(first[rank].results, expected[rank].results, strict=True):
            assert own.loss == pytest.approx(same.loss, rel=1e-4)
    dense = [name for name in first[0].state if "dense" in name and "table" not in name]
    assert len(dense) > 10
    for rank in range(1, world_size):
        assert all(torch.equal(first[rank].state[name], first[0].state[name]) for name in dense)


def early_starts(world: World, job: Job) -> tuple[int, int]:
    """Return the sums that started in the backward passes of two steps, and the number of buckets."""
    rig = with_sums(Rig.build(world, job), Observed)
    for number in range(2):
        rig.train(seed=number, number=number)
    sums = rig.step.dense_sums
    assert isinstance(sums, Observed)
    return sums.num_early, len(sums.buckets)


@pytest.mark.parametrize("micro_batch_tokens", [None, 8])
@pytest.mark.parametrize("encoder", ["sasrec", "hstu"])
def test_sums_of_a_model_start_in_the_backward_pass(rank_pool, tmp_path, encoder, micro_batch_tokens):
    attention = {"attention": {"bias": "position"}} if encoder == "hstu" else {}
    job = job_with(tmp_path, encoder={"kind": encoder, "num_blocks": 2, **attention})
    train = job.config.train.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
    for num_early, num_buckets in rank_pool.run(2, early_starts, with_sections(job, train=train)):
        assert num_buckets > 4
        assert num_early == 2 * num_buckets


def skip_one_of_buckets(world: World, job: Job, kind: str, broken_rank: int) -> Skipped:
    """Run a good step, a step that is broken on one rank, and a good one."""
    return skip_one_of(with_sums(Rig.build(world, job), GradientBuckets), kind, broken_rank)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("kind", ["loss is nan", "gradient of the rows", "gradient of a dense weight"])
def test_a_step_that_is_not_finite_leaves_nothing_in_the_buckets(rank_pool, tmp_path, kind, clip_norm):
    job = job_with(tmp_path)
    job = with_sections(job, train=job.config.train.model_copy(update={"clip_norm": clip_norm}))
    outcomes = rank_pool.run(2, skip_one_of_buckets, job, kind, 1)
    clean = rank_pool.run(2, skip_none, job)
    for outcome, expected in zip(outcomes, clean, strict=True):
        assert not outcome.result.finite
        assert not outcome.result.applied
        assert equal(outcome.after, outcome.before)
        assert outcome.next_result.applied
        assert equal(outcome.final, expected)


def gradients_after(world: World, job: Job) -> list[Tensor | None]:
    rig = with_sums(Rig.build(world, job), GradientBuckets)
    rig.train(seed=1)
    optimizers = rig.step.optimizers
    return [parameter.grad for parameter in (*optimizers.dense_parameters, *optimizers.copied_parameters)]


def test_a_step_leaves_no_gradients(rank_pool, tmp_path):
    for gradients in rank_pool.run(2, gradients_after, variant(tmp_path, "all")):
        assert len(gradients) > 10
        assert set(gradients) == {None}
