"""Ranks compare config, dataset and plan before training, and each draws its own dropout."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job, with_sections
from tests.support.rank_pool import RankPool
from tests.support.steps import observe_steps
from trainer.config.job import SILENT, Job
from trainer.data.dataset.manifest import read_manifest
from trainer.errors import UserError
from trainer.loop.train import Training
from trainer.placement.plan import plan_tables

Fact = Literal["config", "dataset", "plan", "nothing"]


def start(world: World, job: Job, fact: Fact) -> None:
    """Build a training of which the last rank has another `fact`."""
    planned_tables = plan_tables(job, read_manifest(job.dataset_dir), world.world_size, "cpu")
    job = replace(job, planned_tables=planned_tables)
    if world.rank == world.world_size - 1:
        match fact:
            case "config":
                job = with_sections(job, run=job.config.run.model_copy(update={"seed": 6}))
            case "dataset":
                job = replace(job, dataset_dir=job.dataset_dir.with_name("other"))
            case "plan":
                table = replace(planned_tables.plan.tables["item"], sharding="table_wise", places=(0,))
                plan = replace(planned_tables.plan, tables={"item": table})
                job = replace(job, planned_tables=replace(planned_tables, plan=plan))
    Training(job, world, SILENT)


@pytest.mark.parametrize("fact", ["config", "dataset", "plan"])
def test_ranks_that_differ_stop_with_the_difference(rank_pool: RankPool, tmp_path: Path, fact: Fact) -> None:
    tiny_dataset(tmp_path / "dataset")
    tiny_dataset(tmp_path / "other", seed=9)
    job = tiny_job(tmp_path / "run", tmp_path / "dataset")
    with pytest.raises(UserError, match=rf"nothing was started: {fact} differs: rank 0 has \w+, rank 1 has \w+$"):
        rank_pool.run(2, start, job, fact)


def test_ranks_that_agree_start(rank_pool: RankPool, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    rank_pool.run(2, start, tiny_job(tmp_path / "run", tmp_path / "dataset"), "nothing")


def random_states(world: World, job: Job) -> list[int]:
    """Return the seed from which each step of a training draws its dropout."""
    training, seeds = Training(job, world, SILENT), []
    observe_steps(training, lambda batch, number, result: seeds.append(torch.initial_seed()))
    training.run()
    return seeds


def test_every_rank_and_step_draws_its_own_dropout(rank_pool: RankPool, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train={"max_steps": 4})
    seeds = rank_pool.run(2, random_states, job)
    assert len({*seeds[0], *seeds[1]}) == 8
