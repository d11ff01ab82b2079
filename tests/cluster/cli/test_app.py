"""The command line: options reach the driver, and every way to end has its exit code."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app as cli
from cluster.config.run_config import Config
from cluster.driver import driver
from cluster.driver.progress import View
from cluster.errors import RunFailedError, StoppedError
from cluster.ray_cluster import submit as submit_module
from sharding.errors import PlacementError
from tests.support.evaluated import results_of
from trainer.errors import UserError
from trainer.evaluation.next_item.results import Results


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.toml"
    path.write_text('[logs]\npath = "events.parquet"\n')
    return str(path)


def invoked(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [*arguments])
    return done.exit_code, done.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("test", None)),
        (["--split", "validation"], ("validation", None)),
        (["--checkpoint", "step_000000003"], ("test", "step_000000003")),
    ],
)
def test_evaluate_passes_on_split_and_checkpoint(
    config: str, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: tuple[str, str | None]
) -> None:
    asked: list[tuple[str, str | None]] = []

    def run_evaluate(config: Config, split: str, name: str | None, view: View, data: None) -> tuple[Results, Path]:
        asked.append((split, name))
        return results_of({"mrr": 0.5}, {"mrr": 0.1}, split), Path("report.html")

    monkeypatch.setattr(driver, "run_evaluate", run_evaluate)
    code, printed = invoked("evaluate", config, *options, "--json")
    assert code == 0
    assert asked == [expected]
    assert json.loads(printed)["split"] == expected[0]


@pytest.mark.parametrize(("of_job", "expected"), [(0, 0), (3, 3), (None, 0)])
def test_submit_ends_with_the_exit_code_of_the_job(
    config: str, monkeypatch: pytest.MonkeyPatch, of_job: int | None, expected: int
) -> None:
    monkeypatch.setattr(submit_module, "submit", lambda *_: ("shoal-1", of_job))
    code, printed = invoked("submit", config, "--json")
    assert code == expected
    assert json.loads(printed) == {"job_id": "shoal-1", "exit_code": of_job}


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the signal handlers that `main` replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Callable[..., Any]:
    def app(**_: Any) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("wrong setting"), 2),
        (PlacementError("no room"), 2),
        (StoppedError("stopped at step 3"), 1),
        (RunFailedError("rank 1 died"), 1),
        (ZeroDivisionError("a mistake of ours"), 1),
    ],
)
def test_an_error_is_one_message_with_its_exit_code(
    handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    monkeypatch.setattr(cli, "app", raising(error))
    monkeypatch.setattr(cli, "send_token_if_present", lambda: None)  # it would change the environment of other tests
    monkeypatch.setattr(sys, "argv", ["shoal", "run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    printed = capsys.readouterr().err
    assert str(error) in printed
    assert ("Traceback" in printed) == isinstance(error, ZeroDivisionError)
