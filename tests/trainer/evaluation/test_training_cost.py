"""Cost of a training in the report: what one event costs on the dataset, and what the records of a run say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.costs import Workload, costs_of
from models.histories import Histories
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from tests.trainer.evaluation.ranking.worlds import random_shown, write_world
from trainer.costing.matmul_peak import MatmulPeak, write_peak
from trainer.data.dataset.manifest import read_manifest
from trainer.evaluation.training_cost import TrainingCost, cost_of, cost_rows, part_rows, read_cost, write_cost

COST = TrainingCost("event", 100.0, 2e6, 1.5e6, {"feed forward": 1.5e6, "softmax": 0.5e6, "bias": 0.0})
HISTORY = [
    {"step": step, "kind": "train", "events_per_second": speed, "targets_per_second": speed / 10}
    for step, speed in ((10, 1000.0), (20, 3000.0), (30, 2000.0))
]


def record(run_dir: Path, digest: str) -> None:
    """Write the record of stages, and the times of two attempts of training."""
    stages = {
        "prepare": {"status": "done", "started": 100.0, "finished": 104.5, "result": {"digest": digest}},
        "train": {"status": "done", "started": 200.0, "finished": 201.0},
        "evaluate test": {"status": "running", "started": 300.0},
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "state.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    (run_dir / "attempts.json").write_text(json.dumps([[0.0, 60.0], [100.0, 165.0]]), encoding="utf-8")


def test_an_event_costs_what_the_cost_model_says_of_the_training_histories(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "data")
    job = tiny_job(tmp_path / "run", tmp_path / "data")
    cost = cost_of(job, manifest)
    assert cost is not None
    parts = [pq.read_table(tmp_path / "data" / part.path) for part in manifest.parts]
    train_ends = np.concatenate([part.column("train_end").to_numpy() for part in parts])
    inputs = np.clip(train_ends - 1, 0, job.config.model.max_history)
    per_step = 8 * inputs.sum() / inputs.size
    model = job.config.model
    expected = costs_of(model, 8, Workload(Histories.of(inputs), per_step, manifest.counts.num_items))  # type: ignore[arg-type]
    assert cost.unit == "event"
    assert cost.units_per_step == pytest.approx(per_step)
    assert (cost.training_flops, cost.matmul_flops) == (expected.training, expected.total.matmul)
    assert sum(cost.parts.values()) == pytest.approx(cost.training_flops)

    write_cost(job, manifest, tmp_path)
    assert read_cost(tmp_path) == cost


def test_a_ranker_is_counted_by_impressions(tmp_path: Path) -> None:
    manifest = write_world(tmp_path / "data", random_shown())
    logs = {"path": "unused", "labels": ["click", "buy"], "history_label": "click"}
    split = {"kind": "global_time", "validation_time": 60, "test_time": 80}
    model = {"task": "ranking", "kind": "din"}
    job = tiny_job(tmp_path / "run", tmp_path / "data", logs=logs, split=split, model=model)
    cost = cost_of(job, manifest)
    assert cost is not None
    assert cost.unit == "impression"
    assert ("training: speed of all workers", "200 impressions/s (median of the log)") in cost_rows(cost, job, HISTORY)


def test_the_cost_of_a_run_is_not_that_of_other_logs(tmp_path: Path) -> None:
    manifest = tiny_dataset(tmp_path / "data")
    job = tiny_job(tmp_path / "run", tmp_path / "data")
    record(job.run_dir, manifest.digest)
    assert cost_of(job, manifest) is not None
    assert cost_of(job, replace(read_manifest(job.dataset_dir), derived={"base": "x"})) is None
    record(job.run_dir, "another digest")
    assert cost_of(job, manifest) is None
    write_cost(job, manifest, tmp_path)
    assert read_cost(tmp_path) is None


def test_rows_hold_stages_speed_and_flops(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run", tmp_path / "data")
    record(job.run_dir, "digest")
    rows = dict(cost_rows(COST, job, HISTORY))
    assert rows == {
        "stage prepare": "4.5 s",
        "stage train": "2 min 05 s, validation and checkpoints included",
        "training: speed of all workers": "2,000 events/s (median of the log)",
        "training: FLOPs of an event": "2 M, 75% of them in matrix products",
        "training: FLOPs in all": "about 6 G in 30 steps",
        "training: rate of all workers": "4 GFLOP/s",
    }
    write_peak(job.run_dir, MatmulPeak(60e9, 2, 1024, "float32"))
    rows = dict(cost_rows(COST, job, HISTORY))
    assert rows["training: matrix products, share of their peak"] == (
        "5.0% of 60 GFLOP/s in float32, measured on 2 workers at the start of training"
    )
    assert part_rows(COST) == [("feed forward", "75.0%"), ("softmax", "25.0%")]


def test_a_run_without_records_has_no_rows(tmp_path: Path) -> None:
    job = tiny_job(tmp_path / "run", tmp_path / "data")
    assert cost_rows(None, job, []) == []
    assert part_rows(None) == []
