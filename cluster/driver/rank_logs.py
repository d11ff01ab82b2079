"""Logs in the run folder: logs/driver.log and logs/rank-N.log. No ray, no torch."""

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Self

from cluster.driver.stop_request import running_process
from trainer.errors import UserError
from trainer.storage.objects.paths import ObjectPath
from trainer.storage.objects.spool import Spool

FOLDER = "logs"
POLL_SECONDS = 0.5
OBJECT_POLL_SECONDS = 5.0  # as often as logs are uploaded
QUIET_SECONDS = 3.0  # without a running command before a followed log counts as complete


def logs_folder(run_dir: Path) -> str:
    """Return the folder of the logs of a run, as an absolute path."""
    return str((run_dir / FOLDER).resolve())


def log_path(run_dir: Path, rank: int | None) -> Path:
    """Return the log of a rank, or of the driver for None. Raises UserError that names the logs that exist."""
    if not (run_dir / "config.json").exists():
        raise UserError(f"{run_dir}: no config.json, so this is no run folder; give the run.dir of a run")
    path = run_dir / FOLDER / ("driver.log" if rank is None else f"rank-{rank}.log")
    if not path.exists():
        others = sorted(other.name for other in (run_dir / FOLDER).glob("*.log"))
        raise UserError(f"{path}: no such log; the run has {', '.join(others) or 'none'}")
    return path


def follow_log(run_dir: Path, path: Path, follow: bool, tail: int | None) -> Iterator[str]:
    """Yield a log: its last `tail` lines or all, then what is added, until no command runs in the run folder any more.

    Args:
        run_dir: the run folder.
        path: the log.
        follow: whether to wait for more.
        tail: number of last lines to begin with.
    """
    if isinstance(path, ObjectPath):
        yield from _follow_object(run_dir, path, follow, tail)
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read()
        yield text if tail is None else "".join(text.splitlines(keepends=True)[len(text.splitlines()) - tail :])
        idle = time.monotonic()
        while follow:
            text = file.read()
            if text:
                yield text
            if text or running_process(run_dir) is not None:
                idle = time.monotonic()
            elif time.monotonic() - idle > QUIET_SECONDS:
                return
            time.sleep(POLL_SECONDS)


def _follow_object(run_dir: Path, path: ObjectPath, follow: bool, tail: int | None) -> Iterator[str]:
    """Yield a log on an object storage, which is uploaded again as a whole whenever it has grown."""
    text = path.read_text(errors="replace")
    yield text if tail is None else "".join(text.splitlines(keepends=True)[len(text.splitlines()) - tail :])
    idle = time.monotonic()
    while follow:
        time.sleep(OBJECT_POLL_SECONDS)
        more = path.read_text(errors="replace")[len(text) :]
        if more:
            yield more
            text += more
        if more or running_process(run_dir) is not None:
            idle = time.monotonic()
        elif time.monotonic() - idle > QUIET_SECONDS:
            return


class DriverLog:
    """The log of the driver: the lines that its command shows. A full disk is no reason to fail. Use as a context manager."""

    def __init__(self, run_dir: Path) -> None:
        self._spool = Spool(run_dir / FOLDER, "driver", keeps=True)
        self._path = run_dir / FOLDER / "driver.log"
        with suppress(OSError):
            self._path = self._spool.continued("driver.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._spool.close()

    def write(self, text: str) -> None:
        """Append a line with its time."""
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
