"""Request to stop a run: a file in its run folder, which the command that runs there obeys. It works on any shared filesystem.

The command answers by removing the file. A training first saves a checkpoint; any other stage ends as by Ctrl-C.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.driver.run_lock import holder_of, this_process
from cluster.driver.stage_record import StageRecord
from trainer.errors import UserError
from trainer.storage.files import write_json_atomically
from trainer.storage.objects.paths import ObjectPath

FILE = "stop.json"
POLL_SECONDS = 1.0
OBJECT_POLL_SECONDS = 5.0
ANSWER_SECONDS = 30.0  # in which a command that is alive removes the request


@contextmanager
def obeying_requests(run_dir: Path) -> Iterator[None]:
    """Obey a request to stop during the body: this process then receives SIGTERM, as from `kill`.

    A request that is older than the body is removed. A program that uses Shoal without a handler of its own is not ended: there
    only a training obeys, which has a handler.
    """
    _take(run_dir)
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(run_dir, ended), daemon=True, name="stop-request")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(run_dir: Path, ended: threading.Event) -> None:
    # Each look at an object is a request that costs money.
    while not ended.wait(OBJECT_POLL_SECONDS if isinstance(run_dir, ObjectPath) else POLL_SECONDS):
        if _is_requested(run_dir) and callable(signal.getsignal(signal.SIGTERM)):
            _take(run_dir)
            main = threading.main_thread().ident
            if main is not None:  # a signal to the thread ends its wait, which a flag would not
                signal.pthread_kill(main, signal.SIGTERM)
            return


def _is_requested(run_dir: Path) -> bool:
    with suppress(OSError):  # a storage that does not answer is asked again
        return (run_dir / FILE).exists()
    return False


def _take(run_dir: Path) -> None:
    with suppress(OSError):
        (run_dir / FILE).unlink(missing_ok=True)


def request_stop(run_dir: Path) -> str:
    """Ask the command that runs in a run folder to stop. Return the name of its process.

    Raises UserError if the folder is no run folder, or nothing runs in it.
    """
    if not (run_dir / "config.json").exists():
        raise UserError(f"{run_dir}: no config.json, so this is no run folder; give the run.dir of a run")
    holder = running_process(run_dir)
    if holder is None:
        raise UserError(
            f"{run_dir}: no command runs in this run folder, so there is nothing to stop (shoal status {run_dir})"
        )
    write_json_atomically(run_dir / FILE, {"time": time.time(), "by": this_process()})
    return holder


def running_process(run_dir: Path) -> str | None:
    """Return the process that runs in a run folder, or None.

    A lock of another machine may be invisible on a shared filesystem. Then the record of the stages names the process.
    """
    holder = holder_of(run_dir)
    if holder is not None:
        return holder
    for entry in StageRecord(run_dir).read()["stages"].values():
        process = entry.get("process")
        elsewhere = process is not None and process.partition(" on ")[2] != this_process().partition(" on ")[2]
        if entry["status"] == "running" and elsewhere:
            return str(process)
    return None


def is_answered(run_dir: Path) -> bool:
    """Return whether the command has taken the request."""
    return not (run_dir / FILE).exists()


def withdraw(run_dir: Path) -> None:
    """Remove a request that nobody has taken."""
    _take(run_dir)


def stages_now(run_dir: Path) -> dict[str, str]:
    """Return the status of each stage as recorded, for `shoal stop` to see the end on another machine."""
    try:
        stages = json.loads((run_dir / "state.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError):
        return {}
    return {name: str(entry["status"]) for name, entry in stages.items()}
