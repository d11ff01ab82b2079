"""`shoal recommend` passes its options on, and answers with what was written."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from cluster.cli import recommend
from cluster.cli.app import app
from cluster.driver import driver
from trainer.errors import UserError
from trainer.recommend.folder import FORMAT_VERSION, RecommendationsManifest
from trainer.recommend.request import OnUnknown, Options

COUNTS: dict[str, Any] = {
    "num_users": 3,
    "num_popular": 0,
    "num_unknown_users": 0,
    "num_unknown_items": 0,
    "num_rows": 6,
    "seconds": 1.0,
    "users_per_second": 3.0,
    "num_workers": 1,
    "files": {},
    "options": {},
    "at": None,
}
WRITTEN = RecommendationsManifest(FORMAT_VERSION, "digest", "next_item", "step_000000004", "dataset", **COUNTS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Options()),
        (["--users", "u.txt", "--k", "3", "--no-filter-viewed"], Options(3, "u.txt", filter_viewed=False)),
        (
            ["--item-to-item", "--items", "i.csv", "--on-unknown", "skip"],
            Options(items="i.csv", item_to_item=True, on_unknown="skip"),
        ),
        (
            ["--label", "click", "--label", "like=0.5", "--at", "2024-05-01"],
            Options(at="2024-05-01", labels={"click": 1.0, "like": 0.5}),
        ),
    ],
)
def test_options_reach_the_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], expected: Options
) -> None:
    calls: list[Any] = []
    given: list[Any] = []

    def answer(
        config: Any, options: Options, checkpoint: str | None, out: Path | None, view: Any, histories: Any
    ) -> Any:
        calls.append((options, checkpoint, out))
        given.append(histories)
        return WRITTEN, tmp_path

    monkeypatch.setattr(driver, "run_recommend", answer)
    config = tmp_path / "run.toml"
    config.write_text('[logs]\npath = "events.parquet"\n')
    more = ["--checkpoint", "step_000000004", "--out", "there", "--json"]
    done = CliRunner().invoke(app, ["recommend", str(config), *arguments, *more])
    assert done.exit_code == 0, done.output
    assert calls == [(expected, "step_000000004", Path("there"))]
    assert given == [None]
    of_history = ["--history", "day31.csv", "--history", "day32.csv", "--set", "logs.user=uid"]
    assert CliRunner().invoke(app, ["recommend", str(config), *arguments, *more, *of_history]).exit_code == 0
    logs = given[1].config.logs
    assert (logs.path, logs.user, given[1].derivation.history) == (["day31.csv", "day32.csv"], "uid", False)
    printed = json.loads(done.stdout)
    assert (printed["num_rows"], printed["folder"]) == (6, str(tmp_path))


def test_choices_and_weights_are_those_of_the_code() -> None:
    assert get_args(recommend.OnUnknown) == get_args(OnUnknown)
    with pytest.raises(UserError, match="--label click=much: the weight is no number"):
        recommend.weights_of(["click=much"])
