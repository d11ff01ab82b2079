"""The folder of a run: its lock, its config, and the record of finished stages. No ray, no torch.

runs/NAME/  config.json  state.json  plan.json  metrics.jsonl  tensorboard/  checkpoints/  dataset/  evaluation/SPLIT/
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config import Config, check_config, identity
from trainer.errors import UserError
from trainer.settings import changed_settings
from trainer.storage import write_json_atomically


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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"run.dir {folder}: in use by {holder}; wait for it, stop it, or choose another run.dir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


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

    def result(self, stage: str, inputs: str) -> dict[str, Any] | None:
        """What `stage` returned, if it is done for exactly these inputs."""
        entry = self.read()["stages"].get(stage)
        if entry is None or entry["status"] != "done" or entry["inputs"] != inputs:
            return None
        result: dict[str, Any] = entry["result"]
        return result

    def begin(self, stage: str, inputs: str) -> None:
        self._write(stage, {"status": "running", "inputs": inputs, "started": time.time()})

    def finish(self, stage: str, inputs: str, result: dict[str, Any]) -> None:
        self._write(stage, {"status": "done", "inputs": inputs, "finished": time.time(), "result": result})

    def end(self, stage: str, inputs: str, status: str, reason: str) -> None:
        """The stage did not finish: it "failed", or was "stopped" on request."""
        self._write(stage, {"status": status, "inputs": inputs, "finished": time.time(), "reason": reason})

    def _write(self, stage: str, entry: dict[str, Any]) -> None:
        state = self.read()
        state["stages"][stage] = entry
        write_json_atomically(self._path, state)
