"""A run that exists: a submitted command resumes it, and a finished one is refused unless it is forked."""

import json
from pathlib import Path

import pytest

from cluster.config.run_config import Config, check_config
from cluster.driver import existing_run
from cluster.driver.existing_run import describe_existing, fork
from cluster.driver.run_folder import open_run
from cluster.driver.run_lock import locked
from cluster.driver.stage_record import StageRecord
from trainer.errors import UserError


def a_run(folder: Path, batch_size: int = 8) -> Config:
    return check_config(
        {"run": {"dir": str(folder)}, "logs": {"path": "a.parquet"}, "train": {"batch_size": batch_size}}, "test"
    )


def begun(folder: Path, *steps: int) -> Config:
    config = a_run(folder)
    folder.mkdir()
    open_run(config)
    StageRecord(folder).begin("train", "x")
    for step in steps:
        checkpoint = folder / f"checkpoints/step_{step:09d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text(json.dumps({"step": step}))
    return config


def test_a_new_run_is_not_mentioned(tmp_path: Path) -> None:
    assert describe_existing(a_run(tmp_path / "run"), "run") is None


def test_a_run_that_exists_is_resumed(tmp_path: Path) -> None:
    config = begun(tmp_path / "run", 3, 12)
    assert describe_existing(config, "run") == f"run {tmp_path}/run exists: resuming from checkpoint step_000000012"


def test_a_run_with_other_settings_or_in_use_is_refused(tmp_path: Path) -> None:
    config = begun(tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.batch_size: was 8, is 10"):
        describe_existing(a_run(tmp_path / "run", 10), "run")
    with locked(tmp_path / "run"), pytest.raises(UserError, match="in use by process"):
        describe_existing(config, "evaluate")


def test_a_finished_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = begun(tmp_path / "run", 12)
    monkeypatch.setattr(existing_run, "is_finished", lambda config, command: command == "run")
    with pytest.raises(UserError, match=r"this run is finished.*--fork"):
        describe_existing(config, "run")
    assert describe_existing(config, "evaluate") is None


def test_a_fork_has_the_newest_and_the_best_checkpoint(tmp_path: Path) -> None:
    config = begun(tmp_path / "run", 3, 7, 12)
    (tmp_path / "run/checkpoints/best.json").write_text(json.dumps({"step": 7, "metric": "mrr", "value": 0.5}))
    for name in ("metrics.jsonl", "validations.json"):
        (tmp_path / "run" / name).write_text("{}")
    copy = fork(config, tmp_path / "copy")
    assert (copy.run.dir, copy.run.dataset) == (str(tmp_path / "copy"), str(tmp_path / "run/dataset"))
    names = sorted(path.name for path in (tmp_path / "copy/checkpoints").glob("step_*"))
    assert names == ["step_000000007", "step_000000012"]
    assert (tmp_path / "copy/metrics.jsonl").exists()
    assert (tmp_path / "copy/validations.json").exists()
    assert not list(tmp_path.glob(".copy*"))
    with locked(tmp_path / "copy"):
        open_run(copy)  # another command can use it
    with pytest.raises(UserError, match="exists; choose a folder that does not"):
        fork(config, tmp_path / "copy")


def test_nothing_is_forked_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint"):
        fork(begun(tmp_path / "run"), tmp_path / "copy")
