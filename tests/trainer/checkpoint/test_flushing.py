"""All files of a checkpoint are flushed before it gets its name, so a power failure leaves a whole checkpoint or none."""

import os
from pathlib import Path
from unittest import mock

from sharding.world import World
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import SILENT, Job
from trainer.loop.train import Training


def flushed(world: World, job: Job) -> set[tuple[int, bool]]:
    """Return (inode, whether a checkpoint was committed by then) of every file that this rank flushed to the disk."""
    result: set[tuple[int, bool]] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        result.add((os.fstat(descriptor).st_ino, bool(checkpoint_folder.committed(job.checkpoints_dir))))
        real(descriptor)

    training = Training(job, world, SILENT)
    with mock.patch.object(os, "fsync", fsync):
        training.run()
    return result


def test_every_file_is_flushed_before_the_commit(rank_pool: RankPool, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    job = tiny_job(tmp_path / "run", tmp_path / "dataset", train={"max_steps": 1})
    early = {inode for of_rank in rank_pool.run(2, flushed, job) for inode, late in of_rank if not late}
    (checkpoint,) = checkpoint_folder.committed(job.checkpoints_dir)
    names = {path.name for path in checkpoint.iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "manifest.json"} <= names
    assert [path.name for path in checkpoint.iterdir() if path.stat().st_ino not in early] == []
