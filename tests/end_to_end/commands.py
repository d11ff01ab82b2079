"""Shoal's command as a person starts it: a real process, with a deadline."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE = 180.0
ROOT = Path(__file__).parents[2]


def shoal(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command; `environment` is set in addition to that of the tests."""
    # A session of its own: a signal sent to the command must not reach the test, and the other way round.
    return subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], deadline: float = DEADLINE) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"no end within {deadline} s\n{out}\n{err}") from None
    return process.returncode, out, err


def succeed(*arguments: str) -> dict[str, Any]:
    """Return the answer of a command to --json."""
    code, out, err = finish(shoal(*arguments, "--json"))
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def refused(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the one message of a command that is refused."""
    return refused_by(shoal(*arguments, environment=environment))


def refused_by(process: subprocess.Popen[str]) -> str:
    """Return the one message of a command that was started and ends because of a mistake of the user."""
    code, out, err = finish(process)
    assert code == 2, (out, err)
    assert "Traceback" not in out + err
    return err


@dataclass(frozen=True)
class Submitted:
    """A run that was submitted. said: what the command showed of it; again: of the same with another batch size."""

    run_dir: Path
    said: str
    again: str
