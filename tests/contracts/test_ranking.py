"""Rankers keep the contracts of training: any number of workers learns the same, and a resumed run is bit-identical."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.config.run_config import check_config, job_of
from tests.contracts.test_resume import train as train_and_fingerprint
from tests.contracts.test_world_size import global_batches, losses, train
from tests.trainer.evaluation.ranking.worlds import random_shown, write_world
from trainer.config.job import Job
from trainer.errors import UserError
from trainer.metrics_log import read_metrics

STEPS = 20
# Smooth: with relu, rounding can decide on which side of 0 a unit is, and the gradient of its example with it.
ONE_LAYER = {"experts": {"hidden": [16], "activation": "dice"}}
KINDS: dict[str, dict[str, Any]] = {
    "din": {"kind": "din", **ONE_LAYER},
    "bst": {"kind": "bst", "encoder": {"dropout": 0.0, "attention": {"num_heads": 2, "bias": "position"}}, **ONE_LAYER},
    "hstu": {"kind": "hstu", "encoder": {"num_blocks": 2, "dropout": 0.0, "attention": {"bias": "position"}}},
    "sim": {
        "kind": "sim",
        "interest": {"attention": {"num_heads": 2, "bias": "none"}, "search": {"num_found": 3}},
        **ONE_LAYER,
    },
    "pooled": {"kind": "pooled", "crossing": {"kind": "fm", "rank": 4}, "experts": {"kind": "mmoe", "hidden": [8]}},
    "many labels": {
        "kind": "din",
        "crossing": {"kind": "dcn_v2", "rank": 4},
        "experts": {"kind": "ple", "hidden": [8], "num_experts": 2, "activation": "prelu"},
        "labels": {"click": {"loss": "listwise"}, "buy": {"defined_when": "click", "entire_space": True}},
    },
}


def job_in(run_dir: Path, dataset: Path, model: dict[str, Any], **sections: dict[str, Any]) -> Job:
    values: dict[str, dict[str, Any]] = {
        "run": {"dir": str(run_dir), "dataset": str(dataset), "seed": 5},
        "logs": {"path": "unused", "labels": ["click", "buy"], "history_label": "click"},
        "split": {"kind": "global_time", "validation_time": 60, "test_time": 80},
        "model": {"max_history": 12, **model},
        # Adagrad's and Adam's first steps are as long for gradients that are rounding noise as for others.
        "tables": {"item": {"dim": 8, "optimizer": "sgd", "sharding": "row_wise", "learning_rate": 0.3}},
        "train": {"optimizer": "sgd", "learning_rate": 0.3, "batch_size": 8, "log_every_steps": 1, "sample_log": True},
        "evaluate": {"batch_size": 16},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return job_of(check_config(values, "test"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("impressions") / "dataset"
    write_world(folder, random_shown())
    return folder


def validations(run_dir: Path) -> list[dict[str, float]]:
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if line["kind"] == "validation"]
    return [{name: value for name, value in line.items() if "/" in name} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_order_losses_weights_and_metrics_agree_at_every_world_size(rank_pool, tmp_path, dataset, kind):
    weights, metrics = {}, {}
    for world_size in (1, 2, 3):
        job = job_in(tmp_path / f"run-{world_size}", dataset, KINDS[kind], train={"epochs": 5, "max_steps": STEPS})
        weights[world_size] = rank_pool.run(world_size, train, job)[0]
        metrics[world_size] = validations(tmp_path / f"run-{world_size}")
    loss = losses(tmp_path / "run-1")
    assert loss.size == STEPS
    assert abs(loss[-4:].mean() - loss[:4].mean()) > 1e-4, "epochs of four steps: nothing was learned between them"
    assert {f"{metric}/{label}" for metric in ("auc", "gauc", "ne") for label in ("click", "buy")} <= set(metrics[1][0])
    for world_size in (2, 3):
        assert global_batches(tmp_path / f"run-{world_size}", world_size) == global_batches(tmp_path / "run-1", 1)
        np.testing.assert_allclose(losses(tmp_path / f"run-{world_size}"), loss, rtol=1e-5)
        for one, other in zip(metrics[1], metrics[world_size], strict=True):
            for name, value in one.items():
                if "auc" not in name:  # rounding decides between scores that are all but equal
                    assert other[name] == pytest.approx(value, abs=1e-4, nan_ok=True), name
        for name, expected in weights[1].items():
            torch.testing.assert_close(weights[world_size][name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["din", "hstu", "many labels"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stopped_and_resumed_run_is_bit_identical(rank_pool, tmp_path, dataset, kind, world_size):
    model = {**KINDS[kind], "experts": {**KINDS[kind].get("experts", {}), "dropout": 0.25}}
    settings: dict[str, Any] = {
        "train": {"epochs": 4, "max_steps": 14, "micro_batch_tokens": 16, "optimizer": "adamw", "learning_rate": 0.01},
        "tables": {"item": {"dim": 8, "optimizer": "rowwise_adagrad", "sharding": "row_wise"}},
    }
    whole = rank_pool.run(world_size, train_and_fingerprint, job_in(tmp_path / "whole", dataset, model, **settings))
    pieces = job_in(tmp_path / "pieces", dataset, model, **settings)
    stopped = rank_pool.run(world_size, train_and_fingerprint, pieces, 6)
    assert stopped[0][0].reason == "stopped"
    assert rank_pool.run(world_size, train_and_fingerprint, pieces) == whole
    assert losses(tmp_path / "pieces").tolist() == losses(tmp_path / "whole").tolist()


def test_averages_of_activations_are_part_of_a_checkpoint(rank_pool, tmp_path, dataset):
    weights = rank_pool.run(1, train, job_in(tmp_path / "run", dataset, KINDS["din"], train={"max_steps": 3}))[0]
    counts = [value for name, value in weights.items() if name.endswith("statistics.num_updates")]
    assert counts
    assert all(int(count) == 3 for count in counts)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"train": {"batch_tokens": 4096}}, "train.batch_tokens"),
        ({"train": {"long_histories": "windows"}}, "train.long_histories"),
        ({"train": {"early_stopping": {"metric": "ndcg@10"}}}, "auc/click"),
        ({"model": {"task": "next_item"}}, "model.task"),
        ({"model": {"labels": {"like": {}}}}, "model.labels.like"),
    ],
)
def test_settings_that_mean_nothing_for_impressions_are_refused(tmp_path, sections, expected):
    with pytest.raises(UserError, match=expected):
        job_in(tmp_path / "run", tmp_path / "dataset", sections.pop("model", {"kind": "din"}), **sections)
