"""Construction of a model from a job and a dataset: the table row of an item, and the datasets that fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sharding.world import World
from tests.support.datasets import manifest_of_items, tiny_dataset
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from trainer.config.job import SILENT, Job
from trainer.data.dataset.features import hash_rows
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.errors import UserError
from trainer.loop.build import build_model
from trainer.loop.train import Training


def hashed_job(tmp_path: Path, num_rows: int) -> Job:
    table = {"dim": 8, "learning_rate": 0.1, "sharding": "row_wise", "ids": {"kind": "hash", "num_rows": num_rows}}
    return tiny_job(tmp_path / "run", tmp_path / "dataset", tables={"item": table})


def vectors(world: World, job: Job) -> tuple[tuple[int, ...], torch.Tensor]:
    manifest = tiny_dataset(job.dataset_dir, num_users=40, num_items=30) if world.is_first else None
    manifest = world.broadcast(manifest)  # type: ignore[assignment]
    built = build_model(job, manifest, world)  # type: ignore[arg-type]
    request = built.catalogue.request(np.arange(31))
    result = built.model.item_vectors(built.model.look_up(request), request)
    (table,) = (value for name, value in built.model.tables.state_dict().items() if name.endswith("item.weight"))
    return tuple(table.size()), result.detach()


@pytest.mark.parametrize("world_size", [1, 2])
def test_hashed_items_share_rows_and_stay_items(tmp_path: Path, rank_pool: RankPool, world_size: int) -> None:
    job = hashed_job(tmp_path, num_rows=12)
    (shape, actual), *others = rank_pool.run(world_size, vectors, job)
    assert shape == (12, 8)
    manifest = tiny_dataset(tmp_path / "again", num_users=40, num_items=30)
    rows = np.append(0, hash_rows(read_vocabulary(tmp_path / "again", manifest).values, 12))
    assert 1 <= rows[1:].min() <= rows.max() < 12
    assert len(set(rows.tolist())) < 31  # some share a row, or this would test nothing
    same_row = rows[:, None] == rows[None, :]
    same_vector = (actual[:, None, :] == actual[None, :, :]).all(dim=-1).numpy()
    np.testing.assert_array_equal(same_vector, same_row)
    assert all(torch.equal(actual, other) for _, other in others)


def train_hashed(world: World, job: Job) -> float | None:
    if world.is_first:
        tiny_dataset(job.dataset_dir, num_users=40, num_items=30)
    world.barrier()
    training = Training(job, world, SILENT)
    training.run()
    assert training.evaluations.evaluator is not None
    return training.evaluations.evaluator.mean_metrics(training.built.model)["hr@10"]


def test_a_model_with_hashed_items_trains_and_ranks_every_item(tmp_path: Path, rank_pool: RankPool) -> None:
    actual = rank_pool.run(2, train_hashed, hashed_job(tmp_path, num_rows=25))
    assert actual[0] == actual[1]
    assert 0.0 < actual[0] <= 1.0


def test_a_dataset_for_ranking_is_refused(tmp_path: Path) -> None:
    job = hashed_job(tmp_path, num_rows=12)
    manifest = replace(manifest_of_items(5), task="ranking")
    with pytest.raises(UserError, match=r"logs\.labels"):
        build_model(job, manifest, World(0, 1, torch.device("cpu")))


def test_initial_rows_of_tables_follow_the_seed_of_the_run(tmp_path: Path, rank_pool: RankPool) -> None:
    tiny_dataset(tmp_path / "dataset", num_users=40, num_items=30)
    actual = [
        rank_pool.run(1, vectors, tiny_job(tmp_path / "run", tmp_path / "dataset", run={"seed": seed}))[0][1]
        for seed in (5, 5, 6)
    ]
    assert torch.equal(actual[0], actual[1])
    assert not torch.isclose(actual[0], actual[2]).any()
