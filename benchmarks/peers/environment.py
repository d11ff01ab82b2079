"""The environment of the other tools, and runs of programs in it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = ROOT / "requirements/peers.txt"
FOLDER = ROOT / "build/peers"
TIMEOUT_SECONDS = 900.0


def python_of_peers() -> Path:
    """Return the interpreter of the environment, which is made if it is missing or if the requirements have changed."""
    python, made = FOLDER / "bin/python", FOLDER / "requirements.txt"
    if not made.is_file() or made.read_bytes() != REQUIREMENTS.read_bytes():
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
        made.write_bytes(REQUIREMENTS.read_bytes())
    return python


def run_program(module: str, arguments: list[str], threads: int) -> Any:
    """Run a program of this package in the environment, and return the JSON of its last line.

    Raises RuntimeError with the end of its output if it fails.
    """
    threads_of_libraries = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        [python_of_peers(), "-m", f"benchmarks.peers.{module}", *arguments, "--threads", str(threads)],
        cwd=ROOT,
        env={**os.environ, **threads_of_libraries},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} failed with exit code {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
