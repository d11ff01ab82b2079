"""Runs that are trained in rank processes for a few steps, for tests that use the model afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import shoal
from cluster.config.run_config import Config, load_config
from sharding.world import World
from tests.settings.entry import Settings
from tests.settings.lab import Lab
from tests.support.rank_pool import RankPool
from trainer.config.job import SILENT, Job
from trainer.loop.train import Training

# Weights must matter after a few steps.
STEPS: Settings = {"train.max_steps": 4, "train.learning_rate": 0.05, "tables.item.learning_rate": 0.3}


def lab_in(folder: Path) -> Lab:
    """Return a lab that prepares datasets in this process, and needs no ranks for that."""
    return Lab(folder, World(0, 1, torch.device("cpu")), lambda: RankPool())


def trained(world: World, job: Job) -> None:
    """Train a job. Collective."""
    Training(job, world, SILENT).run()


def run_of(
    lab: Lab,
    pool: RankPool,
    world: str,
    settings: Settings,
    num_ranks: int = 1,
    function: Callable[[World, Job], Any] = trained,
) -> tuple[Config, list[Any]]:
    """Train settings on ranks, in a run folder of their own; return the config of the run, and the results of the ranks.

    function: what each rank does with the job; it trains.
    """
    config = lab.settings(world, {**STEPS, **settings})
    job = lab.job(config)
    values = config.model_dump(mode="json")
    values["run"] |= {"dir": str(job.run_dir), "dataset": str(job.dataset_dir)}
    (job.run_dir / "config.json").write_text(json.dumps(values), encoding="utf-8")
    results = pool.run(num_ranks, function, job)
    return load_config(str(job.run_dir / "config.json"), None), results


def loaded(config: Config, **options: Any) -> shoal.NextItemRecommender:
    model = shoal.load(config.run_dir, **options)
    assert isinstance(model, shoal.NextItemRecommender)
    return model


def assert_same(actual: pa.Table, expected: pa.Table) -> None:
    """Compare lists, without the users."""
    assert actual.column(1).to_pylist() == expected.column(1).to_pylist()
    left, right = (table.column("score").to_numpy(zero_copy_only=False) for table in (actual, expected))
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
