"""The owner of a run folder, and who may write it: the same run continues; another run and a second command are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config.run_config import Config, check_config
from cluster.driver.run_folder import open_run
from cluster.driver.run_lock import locked
from cluster.driver.stage_record import StageRecord
from cluster.errors import Interrupted
from trainer.errors import UserError


def config_at(tmp_path: Path, **settings: object) -> Config:
    return check_config({"run": {"dir": str(tmp_path), **settings}, "logs": {"path": "events.parquet"}}, "test")


def test_settings_can_be_changed_until_a_stage_has_started(tmp_path: Path) -> None:
    """As after a config with refused logs."""
    open_run(config_at(tmp_path))
    open_run(config_at(tmp_path, seed=2))
    StageRecord(tmp_path).begin("train", "inputs")
    open_run(config_at(tmp_path, seed=2))
    with pytest.raises(UserError, match=r"run\.seed: was 2, is 3"):
        open_run(config_at(tmp_path, seed=3))


HOLD = """
import sys, pathlib
from cluster.driver.run_lock import locked
from cluster.driver.stage_record import StageRecord
folder = pathlib.Path(sys.argv[1])
with locked(folder):
    StageRecord(folder).begin("train", "inputs")
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_a_stage_whose_process_was_killed_is_interrupted(tmp_path: Path) -> None:
    """Whether it runs is asked of the lock, which ends with its process."""
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        assert StageRecord(run).statuses() == {"train": "running"}
        with pytest.raises(UserError, match=f"in use by process {process.pid} on "), locked(run):
            pass
    finally:
        process.kill()
        process.communicate()
    assert StageRecord(run).statuses() == {"train": "interrupted"}
    with locked(run):  # by another command, which does not train
        assert StageRecord(run).statuses() == {"train": "interrupted"}
        StageRecord(run).begin("evaluate/test", "inputs")
        assert StageRecord(run).statuses() == {"train": "interrupted", "evaluate/test": "running"}


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted(15), "interrupted"), (ValueError("?"), "failed"), (OSError(28, "?"), "failed")]
)
def test_a_stage_that_ends_by_any_error_is_recorded(tmp_path: Path, error: BaseException, status: str) -> None:
    def work() -> None:
        raise error

    record = StageRecord(tmp_path)
    record.begin("evaluate/test", "inputs")
    with pytest.raises(type(error)):
        record.run_stages({"evaluate/test": "inputs"}, work)
    assert record.statuses() == {"evaluate/test": status}


def test_a_stage_is_done_for_its_own_inputs_alone(tmp_path: Path) -> None:
    stages = StageRecord(tmp_path)
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
