"""What the documentation says is so: settings, commands and their options, files and links."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from cluster.cli import config_docs
from cluster.cli.app import app
from cluster.config.file import read_values
from cluster.config.run_config import check_config, load_config
from cluster.plan.simulation.config import read_constants_file
from cluster.plan.workload import check_workload
from cluster.study.config import read_study
from cluster.study.trials import plan_trials
from sharding.config import Sharding, SparseOptimizer
from sharding.support import unsupported_reason
from tests.support.datasets import tiny_dataset

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
]
PACKAGES = ("shoal", "cluster", "trainer", "sharding", "models")


def code_blocks(page: Path, language: str = r"\w*") -> Iterator[str]:
    """Return the blocks of a page, those in one language if it is given."""
    return (m[1] for m in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))


def shoal_commands() -> Iterator[tuple[Path, str]]:
    """Every line of a code block that begins with `shoal`, however long it is continued."""
    for page in PAGES:
        for block in code_blocks(page):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if line.startswith("shoal ") else []
                if words:
                    yield page, shlex.join(words)


COMMANDS = sorted({(page.name, command) for page, command in shoal_commands()})
CONFIGS = [(page.name, text) for page in PAGES for text in code_blocks(page, "toml")]


def test_the_configuration_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == config_docs.page(), "run `make docs`"


def test_configuration_page_knows_every_section() -> None:
    names = {section.name for section in config_docs.sections()}
    assert {"run", "logs", "split", "model.encoder", "model.objective", "tables.NAME", "train.early_stopping"} <= names


def test_the_pages_show_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_in_the_docs_exist_with_their_options(page: str, command: str) -> None:
    _, *arguments = shlex.split(command)
    found: Any = typer.main.get_command(app)
    while isinstance(found, TyperGroup):
        name = arguments.pop(0)
        assert name in found.commands, f"{page}: {command}: there is no command {name}"
        found = found.commands[name]
    context = found.make_context("shoal", arguments)  # parses options and arguments, and calls nothing
    config, study = context.params.get("config"), context.params.get("file")
    if config is not None and config.startswith("configs/plans/"):
        check_workload(read_values(ROOT / config), config, context.params["overrides"] or [])
    elif config is not None and config.startswith("configs/"):
        _, overrides = read_constants_file(None, context.params["overrides"] or [])
        load_config(ROOT / config, overrides or None)
    if study is not None and study.startswith("configs/"):
        assert plan_trials(read_study(ROOT / study, context.params["overrides"])).trials


PLANS = [(page, command) for page, command in COMMANDS if command.startswith("shoal plan mine.toml")]


@pytest.mark.parametrize(("page", "command"), PLANS)
def test_plans_in_the_docs_are_made(page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the README's config; after `shoal run`, unless --rows says that there is no dataset yet."""
    _, *arguments = shlex.split(command)
    if "--calibrate" in arguments:
        pytest.skip("needs a run that was measured")
    monkeypatch.chdir(tmp_path)
    (mine,) = (text for text in code_blocks(ROOT / "README.md", "toml") if text.startswith("# mine.toml"))
    Path("mine.toml").write_text(mine)
    if "--rows" not in arguments:
        Path("runs/mine").mkdir(parents=True)
        tiny_dataset(Path("runs/mine/dataset"))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{page}: {command}: {done.exception}"
    assert Path("runs/mine/plan", "simulation.json" if "--simulate" in arguments else "plan.json").exists()


@pytest.mark.parametrize(("page", "text"), CONFIGS)
def test_configs_in_the_docs_are_valid(page: str, text: str, tmp_path: Path) -> None:
    values = tomllib.loads(text)
    if "table" in values:
        check_workload(values, page, [])
    elif "study" in values:
        file = tmp_path / "study.toml"
        file.write_text(text)
        (tmp_path / "base.toml").write_text('[logs]\npath = "events.parquet"')
        assert plan_trials(read_study(file, ["logs.path=events.parquet"])).trials
    else:
        check_config({**values, "logs": {"path": "events.parquet", **values.get("logs", {})}}, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    for target in links:
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


PACKAGE_FOLDERS = sorted(path.parent for package in PACKAGES for path in (ROOT / package).rglob("__init__.py"))


def test_the_readme_lists_every_package_of_the_first_level_once() -> None:
    (tree,) = (block for block in code_blocks(ROOT / "README.md") if block.startswith("shoal/ "))
    entries = [line.split(maxsplit=1) for line in tree.splitlines()]
    assert all(len(entry) == 2 for entry in entries)
    assert [name for name, _ in entries if name.rstrip("/") in PACKAGES] == [f"{package}/" for package in PACKAGES]


def listed_in(folder: Path, heading: str) -> list[list[str]]:
    """Return names and phrases below a heading of the docstring of a package, up to the next empty line."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    _, _, block = docstring.partition(f"{heading}:\n")
    return [line.split(maxsplit=1) for line in block.partition("\n\n")[0].splitlines()]


@pytest.mark.parametrize("folder", PACKAGE_FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_package_lists_its_packages_with_a_phrase(folder: Path) -> None:
    """README shows the first level; the docstring of a package shows what is below it."""
    listed = listed_in(folder, "Packages")
    assert all(len(entry) == 2 for entry in listed)
    assert [name for name, _ in listed] == [inner.name for inner in PACKAGE_FOLDERS if inner.parent == folder]


@pytest.mark.parametrize("folder", PACKAGE_FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_package_lists_its_files_with_a_phrase(folder: Path) -> None:
    """In the docstring of its `__init__.py`, below "Files:"."""
    listed = listed_in(folder, "Files")
    assert all(len(entry) == 2 for entry in listed)
    assert [name for name, _ in listed] == sorted(
        path.name for path in folder.iterdir() if path.is_file() and path.name != "__init__.py"
    )


@pytest.mark.parametrize("sharding", get_args(Sharding))
def test_the_table_of_shardings_is_correct(sharding):
    kernel = "dense" if sharding == "data_parallel" else "fused"

    def works(pooled: bool, device: str) -> list[str]:
        optimizers = get_args(SparseOptimizer)
        return [o for o in optimizers if unsupported_reason(sharding, kernel, o, pooled, device) is None]

    (line,) = [
        ln for ln in (ROOT / "docs" / "sharding.md").read_text().splitlines() if ln.startswith(f"| `{sharding}` |")
    ]
    _, _, _, tables, optimizers, on_gpus, _ = (cell.strip() for cell in line.split("|"))
    kinds = [name for name, pooled in (("per event", False), ("pooled", True)) if works(pooled, "cpu")]
    assert tables == " and ".join(kinds)
    assert optimizers.split(", ") == works(True, "cpu")
    more = [optimizer for optimizer in works(True, "cuda") if optimizer not in works(True, "cpu")]
    assert on_gpus == (", ".join(more) or "-")


@pytest.mark.parametrize("name", ["Makefile", "docs/installation.md"])
def test_an_editable_installation_is_not_hidden_by_a_folder_of_its_name(name: str) -> None:
    """The default of setuptools is an import hook, which comes after any folder called "shoal" or "models" next to a script."""
    commands = [line for line in (ROOT / name).read_text().splitlines() if line.endswith(" -e .")]
    assert commands
    assert all("--config-settings editable_mode=compat" in line for line in commands)
