"""`shoal plan --simulate` of a config, in this process."""

import json
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from cluster.cli.app import app
from sharding.errors import PlacementError
from trainer.errors import UserError

LENGTHS = ("--set", "simulation.histories.mean_events=30", "--set", "simulation.histories.variation=0.8")
ROWS = ("--rows", "item=1e6")


def invoke(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", str(path), "--simulate", "--out", str(path.parent / "out"), *arguments])


def simulated(path: Path, *arguments: str, rows: tuple[str, ...] = ROWS) -> dict[str, Any]:
    """Return the JSON object."""
    done = invoke(path, *rows, "--json", *arguments)
    assert done.exit_code == 0, done.exception
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def settings(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


def mistake(path: Path, *arguments: str) -> str:
    done = invoke(path, *arguments)
    assert isinstance(done.exception, UserError | PlacementError), done.exception
    return str(done.exception)
