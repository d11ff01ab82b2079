"""Whose a run folder is: the same run goes on, another is refused, and one that never began may be mended."""

from pathlib import Path

import pytest

from cluster.config import Config, check_config
from cluster.run_folder import Stages, open_run
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
