"""`shoal compare`: options reach the comparison, and its answers reach people and programs."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.cli import app as cli
from cluster.cli import compare as module
from tests.support.evaluations import write_run
from trainer.data.dataset.splits import Split
from trainer.errors import UserError


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    generator = np.random.default_rng(0)
    return [
        str(write_run(tmp_path / name, generator.integers(1, top, 200), settings={"x": {"y": top}}))
        for name, top in (("a", 60), ("b", 12))
    ]


def test_people_get_tables_verdicts_and_the_page(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(cli.app, ["compare", *runs])
    assert done.exit_code == 0, done.exception
    assert "verdict: Compared with a, b is better in all 3 metrics." in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("ndcg@10")]
    assert rows[0][-1] == "better"
    assert "not compared: coverage@10: one number for all users" in done.stdout
    page = Path(runs[1]).parent / "compare-a-b" / "compare.html"
    assert f"page: {page}" in done.stdout
    assert page.exists()
    assert page.with_suffix(".json").exists()
    assert all(
        len(line) <= 80 for line in done.stdout.splitlines() if line.startswith(("hr@", "ndcg@", "mrr", "metric"))
    )


def test_programs_get_one_object(runs: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    done = CliRunner().invoke(cli.app, ["compare", *runs, "--json", "--metric", "mrr", "--out", str(folder)])
    answer = json.loads(done.stdout)
    assert answer["page"] == str(folder / "compare.html")
    assert [one["metric"] for one in answer["pairs"][0]["metrics"]] == ["mrr"]
    del answer["page"]
    assert answer == json.loads((folder / "compare.json").read_text())


def test_what_cannot_be_compared_is_a_message_of_the_user(runs: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["compare", runs[0]])
    assert isinstance(done.exception, UserError)  # which ends the command with 2
    done = CliRunner().invoke(cli.app, ["compare", *runs, "--split", "validation"])
    assert "no evaluation of the validation split" in str(done.exception)


def test_the_splits_of_the_option_are_those_of_datasets() -> None:
    assert get_args(module.Split) == get_args(Split)
