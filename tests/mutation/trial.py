"""Trials of faults: each is planted in a copy of the tree, where its nearest tests are run. The tree itself is never changed."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tests.mutation.faults import Fault, stale_reason

NOT_COPIED = (".git", ".venv", "runs", "build", "dist", "__pycache__", ".*_cache", "*.egg-info")

# found: a test failed. survived: all passed. hung: no end within the deadline. broken: the tests could not be run.
# stale: the fault no longer fits the sources.
Outcome = Literal["found", "survived", "hung", "broken", "stale"]


@dataclass(frozen=True)
class Result:
    """What became of one fault."""

    # The fault's name.
    name: str
    outcome: Outcome
    # The test that failed first, or why there is none.
    detail: str
    seconds: float
    # Why the fault may survive, as its declaration says.
    explained: str

    @property
    def is_failure(self) -> bool:
        """True where something has to be done: write a test, or correct the list of faults."""
        return self.outcome != "found" and not (self.outcome == "survived" and self.explained)


@dataclass(frozen=True)
class Copy:
    """A copy of the tree in which one fault at a time is planted."""

    root: Path
    # Folder of real logs for the tests, or a path that does not exist.
    data: Path

    def run(self, tests: Sequence[str], deadline: float, first_only: bool = True) -> tuple[int | None, list[str]]:
        """Run tests. Returns pytest's exit code, None after the deadline, and the names of the tests that failed."""
        scratch = self.root.parent / f"{self.root.name}-scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            f"--basetemp={scratch / 'pytest'}",
            f"--shared-data={self.data}",
            "--all-combinations",
        ]
        with (scratch / "output.txt").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, *(["-x"] if first_only else []), *tests],
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": str(self.root)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(deadline)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
            output.seek(0)
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output.read(), re.MULTILINE)
        return code, failed

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """Hold the fault within the body."""
        path = self.root / fault.file
        text = path.read_text(encoding="utf-8")
        try:
            _write_source(path, text.replace(fault.original, fault.planted))
            yield
        finally:
            _write_source(path, text)


def copy_tree(source: Path, target: Path, data: Path) -> Copy:
    """Copy what tests need of the tree at `source`."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return Copy(target, data)


def try_fault(fault: Fault, copy: Copy, deadline: float) -> Result:
    """Plant one fault, run its tests until the first failure, and remove it."""
    started = time.monotonic()

    def result(outcome: Outcome, detail: str) -> Result:
        return Result(fault.name, outcome, detail, round(time.monotonic() - started, 1), fault.explained)

    reason = stale_reason(fault, copy.root)
    if reason is not None:
        return result("stale", reason)
    with copy.planted(fault):
        code, failed = copy.run(fault.tests, deadline)
    match code:
        case 0:
            return result("survived", fault.explained or "no test failed")
        case 1 if failed:
            return result("found", failed[0])
        case None:
            return result("hung", f"no end within {deadline:g} s")
        case _:
            return result("broken", f"pytest ended with {code}: {', '.join(failed) or 'no test was run'}")


def _write_source(path: Path, text: str) -> None:
    """Write a source file. A cached compilation of another text of the same size and second must not be used."""
    path.write_text(text, encoding="utf-8")
    if path.suffix == ".py":
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, with all that it started."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    for member in (*family, process):
        member.kill()
    process.wait()
