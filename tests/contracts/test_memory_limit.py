"""A model with tables too large for one worker trains on two, and is refused on one with the table and the sizes."""

import pytest
import torch

from sharding.errors import PlacementError
from sharding.tables.measure import measure_tables
from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from trainer.config.job import SILENT, Job
from trainer.data.dataset.manifest import read_manifest
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics
from trainer.placement.plan import plan_tables

LIMIT = 84 * 1024  # bytes of each worker, of which a quarter is reserved; weights and state of the table have 68,900


def limited_job(tmp_path) -> Job:
    return tiny_job(
        tmp_path / "run",
        tmp_path / "dataset",
        model={"objective": {"kind": "sampled_softmax", "num_negatives": 8}, "max_history": 4},
        tables={"item": {"dim": 64, "learning_rate": 0.05}},
        train={"batch_size": 4, "max_steps": 12},
        plan={"device_memory": LIMIT, "reserved_fraction": 0.25},
    )


def train(world: World, job: Job) -> float:
    """Return bytes of tables that this rank holds, after training."""
    torch.set_num_threads(1)
    training = Training(job, world, SILENT)
    training.run()
    built = training.built
    measured = measure_tables(built.sharded_model, training.optimizers, built.tables, {"item": [1]}, world, repeats=1)
    return float(measured.memory_bytes["item"][world.rank])


def test_two_workers_hold_tables_that_one_may_not(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset", num_users=60, num_items=300)
    job = limited_job(tmp_path)
    manifest = read_manifest(job.dataset_dir)
    with pytest.raises(PlacementError) as refused:
        plan_tables(job, manifest, 1, "cpu")
    message = str(refused.value)
    for part in ("tables.item", "KiB", "plan.device_memory", "25 %", "workers"):
        assert part in message, message
    held = rank_pool.run(2, train, job)
    assert max(held) <= LIMIT * 0.75 < sum(held)
    losses = [row["loss"] for row in read_metrics(job.run_dir / "metrics.jsonl") if row["kind"] == "train"]
    assert losses[-1] < losses[0]
