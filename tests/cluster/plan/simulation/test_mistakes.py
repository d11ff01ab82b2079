"""Mistakes in a simulation are named, and end the command with one message."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.cluster.plan.simulation.commands import ROWS, mistake

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers 0: write numbers from 1 to 65,536"),
        (["--workers", "1,many"], "--workers 1,many: write numbers"),
        (["--compare", "devices=3"], "--compare: has no effect with --simulate"),
        (["--set", "simulation.compute.peak_flop=1"], "compute.peak_flop: no such setting; did you mean compute.peak_flops?"),
        (["--set", "simulation.compute.efficiency=2.0"], "compute.efficiency: must be less than or equal to 1"),
        (["--set", "simulation.storage.read_bandwidth=fast"], "storage.read_bandwidth: could not parse"),
        (["--set", "simulation.histories.variation=1.0"], "needs simulation.histories.mean_events"),
        (["--set", "simulation.network=3"], "network: must be a table of settings"),
        (["--constants", "none.toml"], "none.toml: no such file"),
        (["--device-memory", "1KiB"], "no number of workers can hold the tables"),
        (["--calibrate", "nowhere"], "nowhere: has no placement.json with measured look-ups"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(config: Path, arguments: list[str], message: str) -> None:
    assert message in mistake(config, *ROWS, *arguments)


def test_options_of_a_simulation_need_it(config: Path) -> None:
    for option in (["--workers", "1"], ["--scaling", "weak"], ["--constants", "a.toml"]):
        done = CliRunner().invoke(app, ["plan", str(config), *ROWS, *option])
        assert f"{option[0]}: has an effect with --simulate only" in str(done.exception)


def test_a_workload_and_a_ranker_without_a_dataset_are_refused(config: Path) -> None:
    root = ROOT / "configs"
    assert "is a workload, which has tables only" in mistake(root / "plans" / "next_item_1024gpu.toml")
    message = mistake(root / "synthetic_ranking.toml", *ROWS, "--set", f"run.dir={config.parent / 'other'}")
    assert "run `shoal prepare` first" in message


def test_a_mistake_ends_with_two_and_one_message(config: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "plan", str(config), *ROWS, "--simulate", "--workers", "none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("shoal: --workers none: write numbers")
    assert "Traceback" not in done.stderr
