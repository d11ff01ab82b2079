"""Whose a run folder is, and who may write it: the same run goes on, another is refused, and so is a second command."""

import os
from pathlib import Path

import pytest

from cluster.config import Config, check_config
from cluster.run_folder import Stages, locked, open_run
from trainer.errors import UserError


def config_at(tmp_path: Path, **settings: object) -> Config:
    return check_config({"run": {"dir": str(tmp_path), **settings}, "logs": {"path": "events.parquet"}}, "test")


def test_settings_can_be_mended_until_a_stage_has_begun(tmp_path: Path) -> None:
    """As after a config whose logs were refused."""
    open_run(config_at(tmp_path))
    open_run(config_at(tmp_path, seed=2))
    Stages(tmp_path).begin("train", "inputs")
    open_run(config_at(tmp_path, seed=2))
    with pytest.raises(UserError, match=r"run\.seed: was 2, is 3"):
        open_run(config_at(tmp_path, seed=3))


def test_a_stage_is_done_for_its_own_inputs_alone(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    stages.finish("train", "inputs", {"step": 3})
    assert stages.result("train", "inputs") == {"step": 3}
    assert stages.result("train", "others") is None
    assert stages.result("evaluate/test", "inputs") is None
    stages.begin("train", "inputs")
    assert stages.result("train", "inputs") is None
    stages.end("train", "inputs", "failed", "no room")
    assert stages.result("train", "inputs") is None


def test_a_run_folder_is_held_by_one_command_and_then_released(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder), pytest.raises(UserError, match=f"in use by process {os.getpid()} on "), locked(folder):
        pass
    with locked(folder):
        pass
    with pytest.raises(ZeroDivisionError), locked(folder):
        raise ZeroDivisionError
    with locked(folder):
        pass
