"""Configs from files and dictionaries: the same settings as the command reads, with the same errors."""

from pathlib import Path
from typing import Any

import pytest

import shoal
from cluster.config.run_config import identity, load_config

EVENTS = {"logs": {"path": "events.parquet"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('[logs]\npath = "events.parquet"\n[train]\nepochs = 5\nbatch_size = 32\n')
    return path


@pytest.mark.parametrize("overrides", [{"train.epochs": 7}, {"train": {"epochs": 7}}, ["train.epochs=7"]])
def test_a_file_gives_what_the_command_reads(file: Path, overrides: Any) -> None:
    config = shoal.Config.load(file, overrides)
    of_command = load_config(file, ["train.epochs=7"])
    assert config.train.epochs == 7
    assert config.model_dump(mode="json") == of_command.model_dump(mode="json")
    assert identity(config) == identity(of_command)


def test_a_dictionary_gives_the_same(file: Path) -> None:
    values = {"logs": {"path": Path("events.parquet")}, "train": {"epochs": 5, "batch_size": 32}}
    config = shoal.Config.from_dict(values, {"evaluate.ks": (5, 10)})
    assert config == shoal.Config.load(file, ["evaluate.ks=[5, 10]"])
    assert values["train"] == {"epochs": 5, "batch_size": 32}  # left as it was


def test_the_stored_config_of_a_run_gives_the_same(file: Path, tmp_path: Path) -> None:
    config = shoal.Config.load(file)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert shoal.Config.load(tmp_path / "config.json").model_dump() == config.model_dump()


def test_replace_returns_another_config() -> None:
    config = shoal.Config.from_dict(EVENTS)
    other = config.replace({"run.seed": 3})
    assert (config.run.seed, other.run.seed) == (1, 3)
    assert other.replace({"run.seed": 1}).model_dump() == config.model_dump()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shoal.Config.load("nothing.toml"), "no such file"),
        (lambda: shoal.Config.from_dict({}), "logs: is missing"),
        (lambda: shoal.Config.from_dict(EVENTS, {"train.epoch": 3}), "did you mean train.epochs"),
        (lambda: shoal.Config.from_dict(EVENTS, {"train.epochs": "3"}), "train.epochs: must be a valid integer"),
        (lambda: shoal.Config.from_dict(EVENTS, {"train.learning_rate": float("nan")}), "must be a finite number"),
        (lambda: shoal.Config.from_dict(EVENTS, "train.epochs=3"), "must be a dictionary or a list"),
        (lambda: shoal.Config.from_dict(EVENTS).replace(["train.epochs"]), "write it as section.key=value"),
    ],
)
def test_what_does_not_fit_is_a_user_error(call: Any, message: str) -> None:
    with pytest.raises(shoal.UserError, match=message):
        call()
