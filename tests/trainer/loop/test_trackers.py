"""Trackers: the real libraries offline, where they are installed, and libraries that fail."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from trainer.config.tracking import TrackingConfig
from trainer.errors import UserError
from trainer.loop import trackers
from trainer.loop.trackers import Trackers, check_trackers

SETTINGS = {"train": {"batch_size": 8}, "run": {"seed": 1}}
LINES = [(1, {"loss": 2.0, "day": "2026-01-01"}), (2, {"loss": 1.0})]


def tracked(config: TrackingConfig, run_dir: Path, lines: list[tuple[int, dict[str, Any]]]) -> list[str]:
    warnings: list[str] = []
    opened = Trackers(config, run_dir, SETTINGS, warnings.append)
    for step, values in lines:
        opened.log(step, "train", values)
    opened.close()
    return warnings


@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_has_one_run_over_two_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for an installation without a database
    import mlflow

    uri = f"file://{tmp_path}/mlruns" if find_spec("sqlalchemy") is None else f"sqlite:///{tmp_path}/mlflow.db"
    config = TrackingConfig(mlflow=uri, mlflow_experiment="tests")
    run = tmp_path / "run"
    run.mkdir()
    assert tracked(config, run, LINES) == []
    assert tracked(config, run, [(3, {"ndcg@10": 0.5})]) == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    (stored,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert stored.data.params["train.batch_size"] == "8"
    assert stored.data.metrics == {"train/loss": 1.0, "train/ndcg_at_10": 0.5}
    history = client.get_metric_history(stored.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]


@pytest.mark.skipif(find_spec("wandb") is None, reason="Weights & Biases is not installed")
def test_wandb_writes_offline(tmp_path: Path) -> None:
    config = TrackingConfig(wandb="tests", wandb_mode="offline")
    assert tracked(config, tmp_path, LINES) == []
    assert tracked(config, tmp_path, [(3, {"ndcg@10": 0.5})]) == []
    identifier = json.loads((tmp_path / trackers.FILE).read_text())["wandb"]
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{identifier}/*.wandb"))


class Failing:
    """A tracker that loses its server after the first step."""

    def __init__(self, *_: Any) -> None:
        self.steps: list[int] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        if self.steps:
            raise ConnectionError("refused\nmore")
        assert values == {"train/loss": 2.0}  # numbers only
        self.steps.append(step)

    def close(self) -> None:
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_is_reported_once_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "Mlflow", Failing)
    warnings = tracked(TrackingConfig(mlflow="sqlite:///x"), tmp_path, [*LINES, (3, {"loss": 0.5})])
    assert warnings == ["tracking.mlflow: refused; training continues without it"]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    check_trackers(TrackingConfig())
    with pytest.raises(UserError, match=r"tracking\.wandb: the package wandb is not installed on the workers"):
        check_trackers(TrackingConfig(wandb="project"))
