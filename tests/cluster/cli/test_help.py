"""The command line: order, choices and examples of its help, and remedies that exist."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from cluster.cli import app as cli
from cluster.cli import config_docs, convert, evaluate, plan
from cluster.cli.app import app
from cluster.config.run_config import Config, check_config, load_config
from cluster.driver.evaluate_stage import evaluation_folder, run_evaluate_stages
from cluster.driver.stage_record import StageRecord
from cluster.plan.workload import WorkloadConfig
from cluster.study.config import StudyConfig
from sharding.planning.topology import DEVICES
from trainer.data.dataset.splits import Split
from trainer.data.public_sets.sets import SETS

ROOT = Path(__file__).parents[3]
RUNNER = CliRunner()
COMMANDS: Any = typer.main.get_command(app)
FILES = [
    path
    for package in ("shoal", "cluster", "trainer", "sharding", "models")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def every_command(group: Any = COMMANDS) -> Iterator[Any]:
    for command in group.commands.values():
        yield from every_command(command) if isinstance(command, TyperGroup) else [command]


# ---- help


def test_help_lists_the_commands_in_the_order_of_use() -> None:
    names = re.findall(r"^│ (\w+) {2,}", RUNNER.invoke(app, ["--help"]).stdout.partition("Commands")[2], re.M)
    assert tuple(names) == cli.ORDER
    assert set(names) == set(COMMANDS.commands)


def test_choices_are_those_of_the_code() -> None:
    assert get_args(evaluate.Split) == get_args(Split)
    assert get_args(plan.GpuPreset) == tuple(DEVICES)
    assert ", ".join(SETS) == convert.PUBLIC_SETS


@pytest.mark.parametrize(
    "arguments", [["evaluate", "x.toml", "--split", "tset"], ["plan", "x.toml", "--device", "gpu"]]
)
def test_a_choice_that_is_none_is_refused_with_those_there_are(arguments: list[str]) -> None:
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == 2
    choices = {"evaluate": ("validation", "test"), "plan": ("cpu", "cuda")}[arguments[0]]
    assert all(f"'{choice}'" in done.stderr for choice in choices)
    assert f"<{'|'.join(choices)}>" in RUNNER.invoke(app, [arguments[0], "--help"]).stdout


def examples_of_set() -> list[tuple[str, str]]:
    """Return (command, key=value) of every example in the help of a --set option."""
    options = ((command.name, option) for command in every_command() for option in command.params)
    return [
        (name, example)
        for name, option in options
        if "--set" in option.opts
        for example in re.findall(r"[\w.]+=\S+", option.help)
    ]


@pytest.mark.parametrize(("command", "example"), examples_of_set())
def test_the_examples_of_set_are_accepted(command: str, example: str, tmp_path: Path) -> None:
    if command == "synth":
        small = ["--users", "20", "--items", "200"]
        assert RUNNER.invoke(app, ["synth", str(tmp_path / "logs"), *small, "--set", example]).exit_code == 0
    elif not example.startswith("study."):
        config = tmp_path / "config.toml"
        config.write_text('[logs]\npath = "events.parquet"')
        load_config(config, [example])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_category=12", "num_category: no such setting; did you mean num_categories?"),
        ("train.batch_size=256", "train: no such setting"),
        ("num_categories=many", "num_categories: must be a valid integer"),
        ("num_categories", "write it as key=value, for example num_categories=12"),
    ],
)
@pytest.mark.parametrize("kind", [[], ["--impressions"]])
def test_settings_of_synth_are_refused_by_their_own_names(
    kind: list[str], override: str, message: str, tmp_path: Path
) -> None:
    done = RUNNER.invoke(app, ["synth", str(tmp_path / "logs"), "--set", override, *kind])
    assert message in str(done.exception)
    assert "Input should" not in str(done.exception)
    assert "permitted" not in str(done.exception)


# ---- evaluations of named checkpoints


def test_a_named_checkpoint_has_a_folder_and_a_stage_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report of the best checkpoint stays what it was."""
    config = check_config({"run": {"dir": str(tmp_path / "run")}, "logs": {"path": "events.parquet"}}, "test")
    checkpoints = tmp_path / "run" / "checkpoints"

    def stored(path: Path) -> Any:
        return SimpleNamespace(path=path, manifest=SimpleNamespace(files={"a": str(path.parent)}, identity={}))

    written: list[str] = []

    def evaluate(config: Config, splits: list[Split], checkpoint: Any, folder: str, *_: Any) -> dict[Split, Any]:
        for split in splits:
            report = config.run_dir / folder / split / "report.html"
            report.parent.mkdir(parents=True)
            report.write_text(checkpoint.path.name)
            written.append(folder)
        return {split: {"checkpoint": checkpoint.path.name} for split in splits}

    monkeypatch.setattr("cluster.driver.evaluate_stage.evaluate", evaluate)
    monkeypatch.setattr(
        "cluster.driver.evaluate_stage.find_checkpoint",
        lambda config, name, on_event: stored(checkpoints / (name or "step_2")),
    )
    monkeypatch.setattr("cluster.driver.evaluate_stage.read_manifest", lambda folder: None)
    monkeypatch.setattr(
        "cluster.driver.evaluate_stage.evaluation_inputs", lambda config, checkpoint, *_: checkpoint.path.name
    )
    monkeypatch.setattr("cluster.driver.evaluate_stage.report_inputs", lambda *_: "report")
    monkeypatch.setattr(
        "cluster.driver.evaluate_stage.are_there", lambda folder, done: (folder / "report.html").exists()
    )
    monkeypatch.setattr("cluster.driver.evaluate_stage.asdict", dict)
    monkeypatch.setattr("cluster.driver.evaluate_stage.summary_of", dict)
    view: Any = SimpleNamespace(print_line=lambda text: None, clear=lambda: None, on_event=lambda event: None)
    (tmp_path / "run").mkdir()
    best, named, again = (run_evaluate_stages(config, ["test"], name, None, view) for name in (None, "step_1", None))  # type: ignore[arg-type]
    assert best == again
    assert written == ["evaluation", "evaluation/step_1"]
    assert {best["test"][1].read_text(), named["test"][1].read_text()} == {"step_1", "step_2"}
    assert StageRecord(config.run_dir).statuses() == {
        f"{stage}{part}": "done" for stage in ("evaluate/test", "evaluate/step_1/test") for part in ("", "/report")
    }
    other = evaluation_folder(config, "elsewhere/step_1", stored(tmp_path / "elsewhere" / "step_1"))
    assert re.fullmatch(r"evaluation/step_1-[0-9a-f]{8}", other)


# ---- remedies


@cache
def messages() -> list[tuple[str, str]]:
    """Return (place, text) of every string of the packages except docstrings; {} stands for a formatted value."""
    return [message for path in FILES for message in messages_of(path)]


def messages_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every string of a file."""
    # This runs when tests are collected, so each tree is walked once.
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    skipped = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    skipped |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    name = path.relative_to(ROOT)
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield f"{name}:{node.lineno}", node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield f"{name}:{node.lineno}", text


NAMED_COMMANDS = sorted({(m[1], place) for place, text in messages() for m in re.finditer(r"`shoal ([^`{]*)", text)})


def test_messages_name_commands() -> None:
    assert len({command for command, _ in NAMED_COMMANDS}) >= 5


@pytest.mark.parametrize(("named", "place"), NAMED_COMMANDS)
def test_commands_that_messages_name_exist(named: str, place: str) -> None:
    words = named.split()
    command: Any = COMMANDS
    while words and isinstance(command, TyperGroup):
        assert words[0] in command.commands, f"{place}: there is no command {words[0]}"
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options, place


def known_settings() -> set[str]:
    """Return every section and setting of a config, a workload and a study; {} stands for names of tables and features."""
    names = set()
    for section in config_docs.sections():
        name = section.name.replace(".NAME", ".{}")
        names |= {name, *(f"{name}.{setting}" for setting in section.model.model_fields)}
    for prefix, model in (("study", StudyConfig), ("topology", WorkloadConfig.model_fields["topology"].annotation)):
        names |= {prefix, *(f"{prefix}.{setting}" for setting in getattr(model, "model_fields", {}))}
    return names


NAMED_SETTINGS = sorted(
    {
        (m[0], place)
        for place, text in messages()
        for m in re.finditer(
            r"(?<![\w./*{-])(run|logs|split|model|plan|communication|train|checkpoint|evaluate|cluster|tables)(\.(\w+|\{\}))+(?![\w(/-]|\.\w)",
            text.replace("fraction.{}", "fraction."),  # the end of a sentence
        )
        if " " in text and not m[0].endswith((".json", ".html"))  # no name of a file
        if not text.startswith("python -m ")  # nor of a module
    }
)


def test_messages_name_settings() -> None:
    assert len({setting for setting, _ in NAMED_SETTINGS}) > 40


def test_settings_that_messages_name_exist() -> None:
    known = known_settings()

    def exists(setting: str) -> bool:
        pattern = (
            setting.replace("NAME", "{}").replace("tables.item", "tables.{}").replace(".features.item", ".features.{}")
        )
        parts = pattern.split(".")
        return any(
            len(parts) == len(other) and all(a == b or "{}" in (a, b) for a, b in zip(parts, other, strict=True))
            for other in (name.split(".") for name in known)
        )

    wrong = [f"{place}: {setting}" for setting, place in NAMED_SETTINGS if not exists(setting)]
    assert not wrong, "\n".join(wrong)
