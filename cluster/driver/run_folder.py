"""The folder of a run: its lock, its config, and the record of finished stages. No ray, no torch.

runs/NAME/  config.json  state.json  plan.json  metrics.jsonl  tensorboard/  checkpoints/  dataset/  evaluation/[CHECKPOINT/]SPLIT/
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from cluster.config.run_config import Config, check_config
from trainer.config.identity import identity
from trainer.errors import UserError
from trainer.settings import changed_settings
from trainer.storage.files import write_json_atomically

LOCK_ATTEMPTS = 3
LOCK_SECONDS = 0.1  # between two attempts


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder: two commands must not write to one run. Raises UserError naming the holder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.dir {folder}: is a file; choose another run.dir")
    known = ("config.json", "state.json", ".lock", "dataset", "plan")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in known):
        raise UserError(
            f"run.dir {folder}: holds files that are not of a run, so nothing was written; choose another run.dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"run.dir {folder}: cannot be written ({error.strerror}); choose another run.dir") from None
    with file:
        if not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"run.dir {folder}: in use by {holder}; wait for it, stop it, or choose another run.dir"
            ) from None
        with suppress(OSError):  # the holder's name is for messages only, and is no reason to fail on a full disk
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), _this_process().encode())
        yield


def _lock(file: TextIO) -> bool:
    """Lock the file; False if another process holds it for longer than holder_of needs to look."""
    for attempt in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if attempt + 1 < LOCK_ATTEMPTS:
                time.sleep(LOCK_SECONDS)
        else:
            return True
    return False


def holder_of(folder: Path) -> str | None:
    """Return which process holds the run folder; None if no process does. The lock ends with its process, however that ended."""
    try:
        with (folder / ".lock").open(encoding="utf-8") as file:
            holder = file.read().strip()
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return holder
    except OSError:
        pass
    return None


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def open_run(config: Config) -> None:
    """Record the resolved config in the run folder, or refuse if the folder holds a run with other settings.

    A run of which no stage has begun holds nothing yet: its settings were perhaps refused, and are being mended.
    """
    path = config.run_dir / "config.json"
    if path.exists() and Stages(config.run_dir).read()["stages"]:
        try:
            saved = check_config(json.loads(path.read_text(encoding="utf-8")), str(path))
        except ValueError as error:
            raise UserError(
                f"run.dir {config.run_dir}: config.json is not JSON ({error}); choose another run.dir"
            ) from None
        changed = changed_settings(identity(saved), identity(config))
        if changed:
            lines = "\n  ".join(changed)
            raise UserError(
                f"run.dir {config.run_dir}: holds a run with other settings:\n  {lines}\n"
                "set them back to continue it, or choose another run.dir"
            )
    write_json_atomically(path, config.model_dump(mode="json"))


class Stages:
    """state.json: which stages are done, and for which inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "state.json"

    def read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"stages": {}}
        except ValueError as error:
            raise UserError(f"{self._path}: is not JSON ({error}); delete it to run all stages again") from None
        return state

    def statuses(self) -> dict[str, str]:
        """The status of each stage: one that is recorded as running, by a process that is gone, was "interrupted"."""
        holder = holder_of(self.folder)

        def status_of(entry: dict[str, Any]) -> str:
            dead = entry["status"] == "running" and (holder is None or entry.get("process", holder) != holder)
            return "interrupted" if dead else str(entry["status"])

        return {name: status_of(entry) for name, entry in self.read()["stages"].items()}

    def result(self, stage: str, inputs: str) -> dict[str, Any] | None:
        """What `stage` returned, if it is done for exactly these inputs."""
        entry = self.read()["stages"].get(stage)
        if entry is None or entry["status"] != "done" or entry["inputs"] != inputs:
            return None
        result: dict[str, Any] = entry["result"]
        return result

    def begin(self, stage: str, inputs: str) -> None:
        entry = {"status": "running", "inputs": inputs, "started": time.time(), "process": _this_process()}
        self._write(stage, entry)

    def finish(self, stage: str, inputs: str, result: dict[str, Any]) -> None:
        self._write(stage, {"status": "done", "inputs": inputs, "finished": time.time(), "result": result})

    def end(self, stage: str, inputs: str, status: str, reason: str) -> None:
        """Record that the stage did not finish: it "failed", was "stopped" on request, or "interrupted"."""
        self._write(stage, {"status": status, "inputs": inputs, "finished": time.time(), "reason": reason})

    def _write(self, stage: str, entry: dict[str, Any]) -> None:
        state = self.read()
        state["stages"][stage] = entry
        write_json_atomically(self._path, state)
