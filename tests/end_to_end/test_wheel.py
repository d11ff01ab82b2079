"""The wheel in a fresh environment that has what it declares, and neither torch nor Ray."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster import __version__
from cluster.doctor.packages import INSTALL, TRAINING
from tests.end_to_end.commands import DEADLINE, ROOT
from tests.trainer.data.public_sets.originals import MOVIELENS_CSV, write_files

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHIPPED = ("shoal", "cluster", "trainer", "sharding", "models", "pyproject.toml", "README.md", "LICENSE")
TRAINING_COMMANDS = ("run", "prepare", "train", "evaluate", "submit")


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel."""

    folder: Path  # of the environment
    here: Path  # current folder of its commands, empty at first

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment. Nothing of the tests' own environment is importable in it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAY_"))}
        return subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.here,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    def shoal(self, *arguments: str) -> str:
        """Run a command that must succeed, and return what it prints."""
        done = self.call("shoal", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    here = folder / "here"
    here.mkdir()
    # Without pip, which takes longest to install: the tests' own pip installs into the environment.
    _python("-m", "venv", "--without-pip", str(folder / "environment"))
    into = ["-m", "pip", "--disable-pip-version-check", "--python", str(folder / "environment/bin/python")]
    pins = [str(pin) for pin in pinned(needed_by(PROJECT["dependencies"]))]
    _python(*into, "install", "--quiet", "--no-deps", *pins, str(build_wheel(folder)))
    _python(*into, "check")  # everything that the wheel and its dependencies require is there
    return Installed(folder / "environment", here)


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, because a build leaves files among them."""
    sources = folder / "sources"
    sources.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    _python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(sources))
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"shoal-{__version__}-py3-none-any.whl"
    return wheel


def needed_by(requirements: Iterable[str]) -> set[str]:
    """Return the names of all distributions that requirements need, by what is installed here."""
    names: set[str] = set()
    waiting = required_by(requirements)
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += required_by(importlib.metadata.requires(name) or [])
    return names


def required_by(requirements: Iterable[str]) -> list[str]:
    """Return the names of requirements, without those of extras and of other platforms."""
    parsed = [Requirement(line) for line in requirements]
    return [canonicalize_name(r.name) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def pinned(names: set[str]) -> list[Requirement]:
    """Return the pins of requirements/base.txt for these distributions."""
    pins = {canonicalize_name(pin.name): pin for pin in requirements_in("base.txt")}
    return [pins[name] for name in sorted(names)]


def requirements_in(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def _python(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_light_commands_need_neither_torch_nor_ray(installed: Installed) -> None:
    assert "Usage" in installed.shoal("--help")
    assert installed.shoal("--version") == f"shoal {__version__}\n"
    made = json.loads(installed.shoal("synth", "logs", "--users", "300", "--items", "200", "--json"))
    assert made["num_users"] == 300
    write_files(installed.here / "ml-25m", MOVIELENS_CSV)
    converted = json.loads(installed.shoal("convert", "movielens-25m", "ml-25m", "converted", "--json"))
    assert converted["rows"]["events"] == 3
    (installed.here / "run.toml").write_text('[logs]\npath = "logs/events-*.parquet"\n')
    installed.shoal("plan", "run.toml", "--rows", "item=200", "--devices", "4", "--json")
    assert (installed.here / "runs/default/plan/plan.html").exists()


def test_doctor_says_what_is_missing_and_how_to_get_it(installed: Installed) -> None:
    done = installed.call("shoal", "doctor", "--json")
    assert done.returncode == 2, done.stdout + done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["python"]["status"] == "ok"
    for name in ("versions", "ray"):
        assert findings[name]["status"] == "problem"
        assert INSTALL in findings[name]["remedy"]


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_commands_that_train_say_how_to_get_the_rest(installed: Installed, command: str) -> None:
    (installed.here / "run.toml").write_text('[logs]\npath = "logs/events-*.parquet"\n[run]\ndir = "untouched"\n')
    done = installed.call("shoal", command, "run.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match(rf"shoal: {command} needs .*ray, which (is|are) not installed", line)
    assert INSTALL in line
    assert not (installed.here / "untouched").exists()


def test_the_extras_name_everything_that_training_needs() -> None:
    """Each pin of requirements/ is in the range of pyproject.toml; torchrec is not in `cpu`, for the reason given there."""
    pins = {canonicalize_name(pin.name): pin for pin in requirements_in("base.txt")}
    pins |= {canonicalize_name(pin.name): pin for pin in requirements_in("cpu.txt") + requirements_in("cuda.txt")}
    pins["torch"] = Requirement(next(iter(re.findall(r"torch==[\d.]+", (ROOT / "Makefile").read_text()))))
    extras = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
    by_hand = [Requirement(text) for text in re.findall(r"'(torchrec==[^']*)'", INSTALL)]
    for requirement in [*map(Requirement, PROJECT["dependencies"]), *extras["cpu"], *extras["cuda"], *by_hand]:
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version), f"{requirement} excludes the pin {pin}"
    distributions = {name: name for name in TRAINING} | {"fbgemm_gpu": "fbgemm-gpu"}
    assert {*distributions.values()} <= {requirement.name for requirement in extras["cuda"]}
    cpu = {requirement.name for requirement in extras["cpu"] + by_hand}
    assert {*distributions.values()} - {"fbgemm-gpu"} | {"fbgemm-gpu-cpu"} <= cpu
    # Without its dependencies torchrec brings none of them along, so that the extra has to.
    assert {*required_by(importlib.metadata.requires("torchrec") or [])} - {"fbgemm-gpu"} <= cpu
