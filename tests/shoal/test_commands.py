"""The functions with a driver that fails: errors are exceptions, and what a user can correct is a UserError."""

import errno
import importlib.util
from pathlib import Path
from typing import Any, NoReturn

import pytest

import shoal
from cluster.driver import driver
from sharding.errors import PlacementError


@pytest.fixture
def config(tmp_path: Path) -> shoal.Config:
    return shoal.Config.from_dict({"logs": {"path": "events.parquet"}, "run": {"dir": tmp_path / "run"}})


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*arguments: Any) -> NoReturn:
        raise error

    for name in ("run", "run_prepare", "run_train", "run_evaluate", "run_recommend"):
        monkeypatch.setattr(driver, name, fail)


@pytest.mark.parametrize("function", [shoal.run, shoal.prepare, shoal.train, shoal.evaluate, shoal.recommend])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (shoal.UserError("wrong setting"), "wrong setting"),
        (PlacementError("no room"), "no room"),
        (OSError(errno.ENOSPC, "No space left on device", "a.parquet"), "a.parquet: cannot be read or written"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "needs torch, which is not installed"),
    ],
)
def test_what_a_user_can_correct_is_a_user_error(
    config: shoal.Config, monkeypatch: pytest.MonkeyPatch, function: Any, error: Exception, message: str
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(shoal.UserError, match=message):
        function(config, quiet=True)


@pytest.mark.parametrize(
    "error",
    [
        shoal.StoppedError("stopped at step 3"),
        shoal.RunFailedError("rank 1 died"),
        KeyboardInterrupt(),
        ZeroDivisionError("a mistake of ours"),
        ModuleNotFoundError("No module named 'mine'", name="mine"),
    ],
)
def test_other_errors_stay_what_they_are(
    config: shoal.Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        shoal.run(config, quiet=True)
    assert caught.value is error
    assert capsys.readouterr() == ("", "")


def test_missing_packages_are_named_before_anything_is_written(
    config: shoal.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "torchrec") else object())
    with pytest.raises(
        shoal.UserError, match=r"train needs torch and torchrec, which are not installed; install with pip"
    ):
        shoal.train(config)
    assert not config.run_dir.exists()
