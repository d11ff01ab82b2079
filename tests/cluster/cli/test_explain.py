"""`shoal explain` passes its options on, and answers with what was written."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from cluster.cli import explain
from cluster.cli.app import app
from cluster.config.run_config import Config, check_config
from cluster.driver import driver
from cluster.driver.explain_stage import check_options
from trainer.errors import UserError
from trainer.explanation.command.folder import FORMAT_VERSION, ExplanationsManifest
from trainer.explanation.command.request import Options, Removal

COUNTS: dict[str, Any] = {
    "num_users": 3,
    "num_without": 0,
    "num_questions": 6,
    "num_rows": 60,
    "seconds": 1.0,
    "num_workers": 1,
    "files": {},
    "options": {},
    "methods": ["occlusion"],
    "why_method": "",
    "at": None,
}
WRITTEN = ExplanationsManifest(FORMAT_VERSION, "digest", "next_item", "step_000000004", "dataset", **COUNTS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Options()),
        (["--users", "u1,u2", "--k", "3", "--no-filter-viewed"], Options("u1,u2", k=3, filter_viewed=False)),
        (["--sample", "50", "--seed", "7", "--methods", "all"], Options(sample=50, seed=7, method="all")),
        (["--user", "u1", "--item", "i1", "--at", "5"], Options(user="u1", item="i1", at="5")),
        (
            ["--label", "click", "--removal", "masked", "--shown", "4"],
            Options(label="click", removal="masked", shown=4),
        ),
    ],
)
@pytest.mark.parametrize("of_folder", [True, False])
def test_options_reach_the_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], expected: Options, of_folder: bool
) -> None:
    calls: list[Any] = []

    def answer(config: Config, options: Options, checkpoint: str | None, out: Path | None, view: Any) -> Any:
        calls.append((config.logs.path, options, checkpoint, out))
        return WRITTEN, tmp_path

    monkeypatch.setattr(driver, "run_explain", answer)
    config = tmp_path / "config.json"
    config.write_text('{"logs": {"path": "events.parquet"}}')
    run = str(tmp_path if of_folder else config)
    done = CliRunner().invoke(app, ["explain", run, *arguments, "--checkpoint", "step_000000004", "--json"])
    assert done.exit_code == 0, done.output
    assert calls == [("events.parquet", expected, "step_000000004", None)]
    printed = json.loads(done.stdout)
    assert (printed["num_questions"], printed["page"]) == (6, str(tmp_path / "explain.html"))


def test_choices_are_those_of_the_code() -> None:
    assert get_args(explain.Removal) == get_args(Removal)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(k=0), "--k 0: must be at least 1"),
        (Options(sample=0), "--sample 0"),
        (Options(shown=0), "--shown 0"),
        (Options(user="u"), "name both"),
        (Options(user="u", item="i", sample=3), "leave out --users and --sample"),
        (Options(users="u", sample=3), "choose one"),
        (Options(label="click"), "--label"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Options, message: str) -> None:
    config = check_config({"logs": {"path": "events.parquet"}}, "test")
    with pytest.raises(UserError, match=message):
        check_options(config, options)
