"""The house rules that a machine can check: who imports what, how files are called, what the wheel ships.

import-linter checks the direction between the packages; here is what it cannot express.
"""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from setuptools import Distribution

from cluster import __version__
from cluster.config.run_config import load_config
from cluster.study.config import read_study
from cluster.study.trials import plan_trials

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shoal", "cluster", "trainer", "sharding", "models")
SOURCES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LIGHT = [path for path in SOURCES if path.name in ("config.py", "__init__.py")]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


@cache
def imports(source: Path) -> tuple[tuple[int, str], ...]:
    """Return (line, dotted name) of all imports of a file, wherever they are; `from a import b` gives a and a.b."""
    return tuple(_imports(source))


def _imports(source: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: imports are written in full, from the package on"
            yield node.lineno, str(node.module)
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def importers(names: tuple[str, ...], among: list[Path]) -> list[str]:
    """Where any of `names`, or something below it, is imported: "file:line imports name"."""
    return sorted(
        {
            f"{source}:{line} imports {imported}"
            for source in among
            for line, imported in imports(source)
            if any(imported == name or imported.startswith(name + ".") for name in names)
        }
    )


def test_ray_is_imported_only_in_cluster() -> None:
    assert importers(("ray",), [s for s in SOURCES if s.parts[0] != "cluster"]) == []


def test_distributed_torch_is_imported_only_in_sharding_and_checkpoints() -> None:
    others = [s for s in SOURCES if s.parts[0] != "sharding" and s.parts[:2] != ("trainer", "checkpoint")]
    assert importers(("torch.distributed", "torchrec.distributed"), others) == []


@pytest.mark.parametrize("source", LIGHT, ids=str)
def test_config_modules_and_packages_import_neither_torch_nor_ray(source: Path) -> None:
    assert importers(("torch", "torchrec", "fbgemm_gpu", "ray"), [source]) == []


def loaded_by(modules: str, large: set[str]) -> str:
    """Which of `large` are loaded after `modules` were imported, in a process of their own."""
    program = f"import sys, {modules}; print(sorted({large!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_settings_and_command_line_loads_neither_torch_nor_ray() -> None:
    modules = "models.config, sharding.config, trainer.config, cluster.config.run_config, cluster.cli.app, cluster.cli.config_docs"
    assert loaded_by(modules, {"torch", "torchrec", "ray"}) == "[]"


def test_showing_progress_and_status_loads_neither_plots_nor_templates() -> None:
    modules = "cluster.driver.progress, cluster.driver.status, shoal, trainer.tasks.results"
    assert loaded_by(modules, {"matplotlib", "jinja2", "torch", "ray"}) == "[]"


def test_the_driver_loads_torch_and_ray_train_only_to_launch_workers() -> None:
    """Nor does the process from which Ray Train starts workers load TorchRec: both would be silent for seconds."""
    assert loaded_by("cluster.driver.driver", {"torch", "torchrec", "ray.train"}) == "[]"
    assert loaded_by("cluster.workers.ray_train, cluster.workers.jobs", {"torchrec"}) == "[]"


def test_exact_search_loads_no_torchrec() -> None:
    """Exports are loaded where TorchRec is not installed, and search as evaluations do."""
    assert loaded_by("trainer.item_search.score_tiles, trainer.item_search.top_lists", {"torchrec", "ray"}) == "[]"
    assert loaded_by("trainer.export.search", {"torchrec", "ray"}) == "[]"


def test_help_answers_at_once_because_it_loads_nothing_large() -> None:
    """Not timed, since a busy machine takes its time over anything: these are what would take long."""
    large = {"pydantic", "numpy", "pyarrow", "matplotlib", "torch", "torchrec", "ray"}
    program = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print(sorted({large!r} & set(sys.modules)), file=sys.stderr))\n"
        "sys.argv = ['shoal', '--help']\n"
        "runpy.run_module('cluster.cli', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "[]"


def test_no_module_has_a_meaningless_name() -> None:
    folders = (*PACKAGES, "tests", "benchmarks")
    stems = {path.stem: path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert {"utils", "util", "common", "helpers", "helper", "base", "misc"} & stems.keys() == set()


MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400


def test_functions_and_files_fit_on_a_screen_and_in_a_sitting() -> None:
    too_long = []
    for path in sorted(path for folder in (*PACKAGES, "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name, num_lines = path.relative_to(ROOT), len(text.splitlines())
        if num_lines > MAX_FILE_LINES:
            too_long.append(f"{name}: {num_lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or 0) - node.lineno + 1
                if num_lines > MAX_FUNCTION_LINES:
                    too_long.append(
                        f"{name}:{node.lineno}: {node.name}: {num_lines} lines, at most {MAX_FUNCTION_LINES}"
                    )
    assert too_long == []


def package_files() -> dict[str, str]:
    """Where each package is found. Runs on the driver and on workers."""
    return {name: str(importlib.import_module(name).__file__) for name in PACKAGES}


def test_packages_are_this_project_on_driver_and_workers(ray_session: None) -> None:
    import ray

    here = {name: str(ROOT / name / "__init__.py") for name in PACKAGES}
    assert package_files() == here
    assert ray.get(ray.remote(package_files).remote()) == here


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path: Path) -> None:
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    if "study" in given:
        assert plan_trials(read_study(path)).trials
        return
    load_config(path, [] if "path" in given.get("logs", {}) else ["logs.path=events.parquet"])


def test_the_wheel_ships_exactly_these_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files()
    folders = {name: ROOT.joinpath(*name.split(".")) for name in distribution.packages}
    assert {name.split(".")[0] for name in folders} == set(PACKAGES)
    assert not distribution.py_modules
    patterns = ["*.py", *(pattern for data in distribution.package_data.values() for pattern in data)]
    shipped = {
        str(path.relative_to(ROOT))
        for folder in folders.values()
        for path in folder.iterdir()
        if any(fnmatch(path.name, pattern) for pattern in patterns)
    }
    assert "trainer/evaluation/next_item/report.html.j2" in shipped
    assert "models/compiled/softmax.h" in shipped
    present = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert present == shipped  # the packages have no file that an installed shoal would lack


def test_version_and_entry_point_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" in project["dynamic"]  # it stands in cluster.__version__ alone
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert project["scripts"] == {"shoal": "cluster.cli.app:main"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_root_has_few_loose_files(package: str) -> None:
    """A root with many files is foundation and roof at once; packages with a name of their own hold the rest."""
    files = [path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= 7, files
