"""A command that trains, watched from outside: how far it is, its processes, and its end compared with another run."""

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.end_to_end.test_run import tensor_hashes
from trainer.checkpoint import folder as checkpoint_folder
from trainer.metrics_log import read_metrics
from trainer.restart_log import Restart, read_restarts

WAIT_SECONDS = 300.0


def wait_for(what: str, condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until the condition holds. Fail with `what` after a while, or when the command ends before."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended, f"the command ended before: {what}\n{process.communicate() if process else ''}"
        assert time.monotonic() < end, f"not within {WAIT_SECONDS:.0f} s: {what}"
        time.sleep(0.1)


def step_of(run_dir: Path) -> int:
    """Return the newest step in metrics.jsonl; 0 if a line is being written."""
    try:
        return max((row["step"] for row in read_metrics(run_dir / "metrics.jsonl")), default=0)
    except Exception:  # noqa: BLE001 - the file is read while it is written
        return 0


def processes_of(command: subprocess.Popen[str], title: str) -> list[psutil.Process]:
    """Return the processes that a command has started with this in their title, such as "ray::Mailbox"."""
    chosen = []
    for process in psutil.Process(command.pid).children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                chosen.append(process)
        except psutil.Error:
            continue
    return chosen


def kill_one(command: subprocess.Popen[str], title: str) -> None:
    """Kill a process of a command by its title."""
    (process,) = processes_of(command, title)
    process.send_signal(signal.SIGKILL)


def recovered(run_dir: Path, number: int) -> Callable[[], bool]:
    """Return a condition: training continues after that many restarts."""
    return lambda: sum(restart.seconds is not None for restart in read_restarts(run_dir)) >= number


def check_exact(run_dir: Path, undisturbed: Path) -> None:
    """Compare order of examples, checkpoints and results with those of an undisturbed run: all to the last bit."""
    for rank in (0, 1):
        log = f"sample_log/rank-{rank}.jsonl"
        assert (undisturbed / log).read_text() == (run_dir / log).read_text()
    actual, expected = (checkpoint_folder.committed(folder / "checkpoints") for folder in (run_dir, undisturbed))
    assert [path.name for path in actual] == [path.name for path in expected]
    for one, other in zip(actual, expected, strict=True):
        assert tensor_hashes(one) == tensor_hashes(other)
    assert not list((run_dir / "checkpoints").glob(".*"))


def trained_rows(run_dir: Path) -> Counter[int]:
    """Return how often each row was trained, by the logs of all ranks."""
    counts: Counter[int] = Counter()
    for path in (run_dir / "sample_log").glob("rank-*.jsonl"):
        for line in path.read_text().splitlines():
            counts.update(row for row in json.loads(line)["row_ids"] if row >= 0)
    return counts


def report_restarts(run_dir: Path) -> list[Restart]:
    """Return the restarts of a run, and print what they took, for build/faults.log."""
    restarts = read_restarts(run_dir)
    for restart in restarts:
        print(f"{restart.seconds} s, {restart.steps} steps, {restart.rows} rows again: {restart.text}")
    return restarts
