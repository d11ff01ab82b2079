"""A ranker that looks up bags equals the one that looks up rows: trained, evaluated, stopped and resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from cluster.config.run_config import check_config, job_of
from sharding.world import World
from tests.contracts.test_ranking import validations
from tests.contracts.test_resume import train as train_and_fingerprint
from tests.contracts.test_world_size import losses
from tests.support.grown_datasets import LABELS, ranking_dataset
from trainer.checkpoint.keys import tensors_of
from trainer.config.job import SILENT, Channel, Job
from trainer.data.dataset.manifest import write_manifest
from trainer.errors import UserError
from trainer.loop.train import Training

SEVERAL = {"kind": "categorical", "table": "tags"}
MODEL = {
    "task": "ranking",
    "kind": "din",
    "max_history": 6,
    "experts": {"hidden": [8]},
    "inputs": {"event_features": ["tags"], "candidate_features": ["tags", "place"], "user_features": ["languages"]},
}


def job_at(run_dir: Path, dataset: Path, lookup: str, sharding: str, **train: Any) -> Job:
    # Adagrad's first step moves every weight by its whole rate: larger ones would let any rounding grow.
    table = {"dim": 8, "optimizer": "adagrad", "learning_rate": 0.01, "eps": 1e-3, "init_std": 0.1}
    values = {
        "run": {"dir": str(run_dir), "dataset": str(dataset), "seed": 5},
        "logs": {
            "path": "unused",
            "labels": list(LABELS),
            "history_label": LABELS[0],
            "features": {"tags": SEVERAL, "place": {"kind": "categorical", "table": "place"}},
            "users": {"path": "unused", "features": {"languages": SEVERAL}},
        },
        "split": {"kind": "global_time", "validation_time": 60, "test_time": 80},
        "model": MODEL,
        "tables": {
            "item": {"sharding": "row_wise", **table},
            "tags": {"sharding": sharding, "lookup": lookup, **table},
            "place": {"sharding": "table_wise", "lookup": lookup, "pooling": "sum", **table},
        },
        "train": {
            "epochs": 6, "evaluate_every_epochs": 6, "max_steps": 12,
            "batch_size": 12, "optimizer": "sgd", "learning_rate": 0.1, "log_every_steps": 1,
            "micro_batch_tokens": 90, "clip_norm": 0.5, **train,
        },
        "plan": {"measure": False},
        "evaluate": {"batch_size": 16},
    }  # fmt: skip
    return job_of(check_config(values, "test"))


def train(world: World, job: Job, stop_after: int | None = None) -> dict[str, Tensor]:
    """Return all weights by their names in a checkpoint, whole on the first rank; if asked, training stops at step `stop_after`."""
    asked = []

    def stop_requested() -> bool:
        asked.append(None)
        return stop_after is not None and len(asked) >= stop_after

    training = Training(job, world, Channel(send=SILENT.send, stop_requested=stop_requested))
    training.run()
    built, whole = training.built, {}
    for name, value in tensors_of(built.sharded_model, built.tables, None).items():
        if isinstance(value, ShardedTensor):
            whole[name] = torch.zeros(value.size()) if world.is_first else None
            value.gather(0, whole[name])
        else:
            whole[name] = value.clone()
    return whole


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranking")
    manifest = ranking_dataset(folder, num_days=2)
    # As many as the labels, which are drawn at one in two, have about.
    positives = {name: {"train": manifest.counts.train_events // 2} for name in LABELS}
    write_manifest(folder, replace(manifest, labels={**manifest.labels, "positives": positives}))
    return folder


@pytest.fixture(scope="module")
def by_row(tmp_path_factory: pytest.TempPathFactory, dataset: Path, rank_pool):
    """Return (run folder, tensors) of the run that looks up rows, on one worker."""
    run = tmp_path_factory.mktemp("rows") / "run"
    return run, rank_pool.run(1, train, job_at(run, dataset, "rows", "row_wise"))[0]


def assert_same(run: Path, tensors: dict[str, Tensor], by_row) -> None:
    assert losses(run) == pytest.approx(losses(by_row[0]), rel=1e-5)
    assert losses(run).size == 12
    assert tensors.keys() == by_row[1].keys()
    for name, expected in by_row[1].items():
        torch.testing.assert_close(tensors[name], expected, rtol=1e-4, atol=1e-5, msg=name)
    actual, wanted = validations(run)[-1], validations(by_row[0])[-1]
    assert actual == pytest.approx(wanted, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    ("world_size", "sharding"), [(1, "row_wise"), (2, "row_wise"), (2, "data_parallel"), (3, "column_wise")]
)
def test_bags_train_and_rank_as_rows_do(rank_pool, tmp_path, dataset, by_row, world_size, sharding):
    job = job_at(tmp_path / "run", dataset, "bags", sharding)
    assert_same(tmp_path / "run", rank_pool.run(world_size, train, job)[0], by_row)
    assert {"table.item.weight", "table.tags.weight", "table.place.weight"} <= set(by_row[1])


def test_a_run_resumes_under_other_plans_and_from_rows_to_bags_and_back(rank_pool, tmp_path, dataset, by_row):
    run = tmp_path / "run"
    rank_pool.run(1, train, job_at(run, dataset, "rows", "row_wise"), 3)
    rank_pool.run(2, train, job_at(run, dataset, "bags", "column_wise"), 3)
    rank_pool.run(2, train, job_at(run, dataset, "bags", "data_parallel"), 2)
    rank_pool.run(1, train, job_at(run, dataset, "bags", "table_wise"), 2)
    assert_same(run, rank_pool.run(1, train, job_at(run, dataset, "rows", "row_wise"))[0], by_row)


def test_stopping_bags_changes_no_bit(rank_pool, tmp_path, dataset):
    whole = rank_pool.run(2, train_and_fingerprint, job_at(tmp_path / "whole", dataset, "bags", "row_wise"))
    pieces = job_at(tmp_path / "pieces", dataset, "bags", "row_wise")
    assert rank_pool.run(2, train_and_fingerprint, pieces, 5)[0][0].reason == "stopped"
    assert rank_pool.run(2, train_and_fingerprint, pieces) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"tables": {"item": {"lookup": "bags"}}},
            r'tables\.item\.lookup = "bags": histories need the row of every item',
        ),
        (
            {"tables": {"tags": {"lookup": "bags", "weight_decay": 0.1}}},
            r"tables\.tags: weight_decay with optimizer = rowwise_adagrad and sharding = row_wise: only rowwise_adagrad of",
        ),
        (
            {"tables": {"kind": {"lookup": "bags"}}},
            r'tables\.kind\.lookup = "bags": model\.interest\.search\.feature = \'kind\' compares single values',
        ),
    ],
)
def test_unsupported_bags_are_refused_by_name(change, said):
    values = {
        "logs": {
            "path": "unused",
            "labels": ["click"],
            "history_label": "click",
            "features": {"tags": SEVERAL},
            "items": {"path": "unused", "features": {"kind": {"kind": "categorical", "table": "kind"}}},
        },
        "split": {"kind": "global_time", "validation_time": 60, "test_time": 80},
        "model": {"task": "ranking", "kind": "sim", "interest": {"search": {"kind": "category", "feature": "kind"}}},
        **change,
    }
    with pytest.raises(UserError, match=said):
        check_config(values, "test")
