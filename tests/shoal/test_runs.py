"""Runs on disk, as other tests' datasets, checkpoints and metrics leave them."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import shoal
from cluster.driver.stage_record import StageRecord
from shoal.results import training_of
from tests.support.datasets import tiny_dataset
from tests.support.evaluated import results_of
from trainer.checkpoint import folder as checkpoint_folder
from trainer.config.job import Outcome

LINES = [
    {"step": 1, "kind": "train", "loss": 2.0, "epoch": 0},
    {"step": 2, "kind": "train", "loss": 1.5, "epoch": 0, "grad_norm": 0.1},
    {"step": 2, "kind": "validation", "mrr": 0.25},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run folder that was moved after its config was written."""
    tiny_dataset(tmp_path / "dataset")
    config = shoal.Config.from_dict({"logs": {"path": "events.parquet"}, "run": {"dir": "elsewhere"}})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    StageRecord(tmp_path).finish("train", "inputs", {})
    for step in (1, 2, 3):
        path = tmp_path / "checkpoints" / checkpoint_folder.name_of(step)
        path.mkdir(parents=True)
        (path / "manifest.json").touch()
    return tmp_path


def test_a_run_has_its_stages_dataset_and_config(folder: Path) -> None:
    run = shoal.Run.open(folder)
    assert run.stages == {"train": "done"}
    assert run.config.logs.path == "events.parquet"
    assert run.dataset.folder == folder / "dataset"
    assert run.dataset.num_users > 0
    assert run.dataset.num_events > run.dataset.num_users


def test_the_metrics_log_is_a_table(folder: Path) -> None:
    run = shoal.Run.open(folder)
    assert run.metrics_log("train").to_pylist() == [{**LINES[0], "grad_norm": None}, LINES[1]]
    assert run.metrics_log("validation").to_pylist() == [LINES[2]]
    assert run.metrics_log().num_rows == len(LINES)
    assert run.metrics_log("skipped").num_rows == 0


def test_the_best_checkpoint_is_the_one_that_training_chose_or_else_the_newest(folder: Path) -> None:
    run = shoal.Run.open(folder)
    assert [path.name for path in run.checkpoints] == ["step_000000003", "step_000000002", "step_000000001"]
    assert run.best_checkpoint == run.checkpoints[0]
    checkpoint_folder.write_best(folder / "checkpoints", 2, "mrr", 0.25)
    assert run.best_checkpoint == run.checkpoints[1]
    assert training_of(folder, Outcome("finished", 3, 2, 0.25)).checkpoint == run.checkpoints[1]
    assert training_of(folder, Outcome("finished", 3, None, None)).checkpoint == run.checkpoints[0]
    checkpoint_folder.write_best(folder / "checkpoints", 9, "mrr", 0.25)  # was deleted by hand
    assert run.best_checkpoint == run.checkpoints[0]


def test_evaluations_have_metrics_with_intervals(folder: Path) -> None:
    results = results_of({"hr@10": 0.4, "coverage@10": 0.25}, {"hr@10": 0.1, "coverage@10": 0.05})
    for place in ("evaluation/test", "evaluation/step_000000001/test"):
        (folder / place).mkdir(parents=True)
        (folder / place / "metrics.json").write_text(json.dumps(asdict(results)))
    evaluations = shoal.Run.open(folder).evaluations
    assert [*evaluations] == ["step_000000001/test", "test"]
    metrics = evaluations["test"].metrics
    assert metrics["hr@10"].value == 0.4
    assert metrics["hr@10"].interval == tuple(results.ci95["hr@10"])
    assert evaluations["test"].baselines["popularity"]["hr@10"].value == 0.1
    assert evaluations["test"].report == folder / "evaluation/test/report.html"
    (folder / "evaluation/test/metrics.json").write_text("{}")
    with pytest.raises(shoal.UserError, match=r"test: metrics\.json cannot be read"):
        _ = shoal.Run.open(folder).evaluations


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(shoal.UserError, match="this is no run folder"):
        shoal.Run.open(tmp_path)
