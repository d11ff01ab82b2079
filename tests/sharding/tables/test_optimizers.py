"""The combined optimizer covers every parameter exactly once, or none is built."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sharding.tables.optimizers import Optimizers
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from trainer.config.job import Job
from trainer.data.dataset.manifest import read_manifest
from trainer.loop.build import build_model

Build = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


def all_of_them(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def all_but_one(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(parameters)[1:], lr=0.1)


def one_twice(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    first, *others = parameters
    built = torch.optim.SGD([first, *others], lr=0.1)
    built.param_groups[0]["params"].append(first)
    return built


def build(world: World, job: Job, build_dense: Build) -> None:
    built = build_model(job, read_manifest(job.dataset_dir), world)
    Optimizers(built.sharded_model, build_dense, built.tables, built.planned_tables.plan)


@pytest.mark.parametrize("sharding", ["row_wise", "data_parallel"])
@pytest.mark.parametrize(
    ("build_dense", "complaint"), [(all_but_one, r"never \['[\w.]+'\]"), (one_twice, r"twice \['[\w.]+'\]")]
)
def test_a_parameter_that_is_left_out_or_covered_twice_is_named(
    rank_pool: RankPool, tmp_path: Path, sharding: str, build_dense: Build, complaint: str
) -> None:
    tiny_dataset(tmp_path / "dataset")
    table = {"item": {"dim": 8, "learning_rate": 0.1, "sharding": sharding}}
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", tables=table)
    rank_pool.run(1, build, job, all_of_them)
    with pytest.raises(AssertionError, match=complaint):
        rank_pool.run(1, build, job, build_dense)
