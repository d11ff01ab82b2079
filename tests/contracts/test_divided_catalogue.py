"""Workers that divide the catalogue among them train as workers that each look up all items."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.plan.request import read_request
from sharding.world import World
from tests.contracts.test_world_size import STEPS, losses, train, validation
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_config, tiny_job
from tests.support.steps import first_step
from trainer.config.job import SILENT, Job
from trainer.loop.train import Training

RATE = 0.01


def job_of(folder: Path, dataset: Path, catalogue_workers: int, objective: dict[str, Any], **sections: Any) -> Job:
    model = {"objective": {"kind": "full_softmax", **objective}, **sections.pop("model", {})}
    train = {"optimizer": "adagrad", "learning_rate": RATE, "max_steps": STEPS, "catalogue_workers": catalogue_workers}
    return tiny_job(
        folder,
        dataset,
        model=model,
        tables={"item": {"dim": 16, "optimizer": "adagrad", "sharding": "row_wise", "learning_rate": RATE}},
        train={**train, **sections.pop("train", {})},
        **sections,
    )


@pytest.mark.parametrize(
    ("objective", "sections", "world_size", "catalogue_workers"),
    [
        ({}, {}, 2, 2),
        ({"normalize": True, "temperature": 0.1}, {}, 3, 3),
        ({"label_smoothing": 0.1}, {}, 4, 2),
        ({}, {"train": {"micro_batch_tokens": 9}}, 3, 3),
        ({}, {"train": {"batch_size": 3}}, 4, 4),  # less histories than ranks: one has no targets
        ({}, {"model": {"encoder": {"kind": "bert4rec", "num_blocks": 1, "dropout": 0.0}}}, 2, 2),
        ({}, {"train": {"clip_norm": 0.05}}, 2, 2),
    ],
    ids=str,
)
def test_losses_and_weights_are_those_of_the_whole_catalogue(
    rank_pool, tmp_path, objective, sections, world_size, catalogue_workers
):
    tiny_dataset(tmp_path / "dataset")
    weights, loss, metric = {}, {}, {}
    for workers in (1, catalogue_workers):
        job = job_of(tmp_path / str(workers), tmp_path / "dataset", workers, objective, **dict(sections))
        weights[workers] = rank_pool.run(world_size, train, job)[0]
        loss[workers] = losses(tmp_path / str(workers))
        metric[workers] = validation(tmp_path / str(workers))
    assert len(loss[1]) == STEPS
    assert min(loss[1]) < loss[1][0]
    np.testing.assert_allclose(loss[catalogue_workers], loss[1], rtol=1e-5)
    np.testing.assert_allclose(metric[catalogue_workers], metric[1], atol=1e-6)
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[catalogue_workers][name], expected, rtol=1e-5, atol=1e-6, msg=name)


def looked_up(world: World, job: Job) -> tuple[set[int], set[int], int]:
    """Return the items that this rank looks up in the first step, those of its histories, and the number of all items."""
    training = Training(job, world, SILENT)
    first = first_step(training)
    history = first.batch.lookup_ids[first.batch.history_index]
    return set(first.batch.lookup_ids.tolist()), set(history.tolist()), training.built.catalogue.num_known - 1


def test_no_rank_looks_up_more_than_its_share_and_its_histories(rank_pool, tmp_path):
    tiny_dataset(tmp_path / "dataset")
    job = job_of(tmp_path / "run", tmp_path / "dataset", 3, {})
    of_ranks = rank_pool.run(3, looked_up, job)
    num_items = of_ranks[0][2]
    assert set().union(*(looked for looked, *_ in of_ranks)) >= set(range(1, num_items + 1))
    assert all(len(looked - history) <= -(-num_items // 3) for looked, history, _ in of_ranks)


def test_a_group_that_does_not_divide_the_workers_becomes_smaller():
    config = tiny_config(Path("run"), Path("dataset"), train={"catalogue_workers": 4}).train
    assert [config.catalogue_group(workers) for workers in (1, 2, 3, 4, 6, 7, 8)] == [1, 2, 3, 4, 3, 1, 4]


def test_the_plan_counts_the_share(tmp_path):
    def items(catalogue_workers: int) -> float:
        settings = ["cluster.num_workers=8", "logs.path=events.parquet", f"train.catalogue_workers={catalogue_workers}"]
        request = read_request("configs/movielens1m_sasrec.toml", settings, {"item": 1_000_000})
        return next(load.ids_per_rank for load in request.loads if load.name == "item")

    assert items(8) < items(2) < items(1)


def test_other_objectives_are_refused(tmp_path):
    with pytest.raises(Exception, match=r"train\.catalogue_workers = 2 divides the catalogue"):
        tiny_config(
            tmp_path, tmp_path, train={"catalogue_workers": 2}, model={"objective": {"kind": "sampled_softmax"}}
        )
