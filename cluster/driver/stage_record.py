"""Stage record: which stages of a run are done, for which inputs, and how far the running one is (state.json)."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cluster.driver.run_lock import holder_of, this_process
from cluster.errors import Interrupted, RunFailedError, WorkersFailedError
from trainer.errors import UserError
from trainer.storage.files import write_json_atomically, write_text_atomically

T = TypeVar("T")
PROGRESS_SECONDS = 5.0  # between two notes of progress, each of which is a file written and flushed


class StageRecord:
    """The record of a run's stages in state.json.

    A stage has a status: "running", "done", "failed", "stopped" (on request) or "interrupted".
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "state.json"
        self._noted = 0.0

    def read(self) -> dict[str, Any]:
        """Return the whole record. Raises UserError if the file is not JSON."""
        try:
            state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"stages": {}}
        except ValueError as error:
            raise UserError(f"{self._path}: is not JSON ({error}); delete it to run all stages again") from None
        return state

    def statuses(self) -> dict[str, str]:
        """Return the status of each stage; a stage recorded as running by a process that is gone was "interrupted"."""
        holder = holder_of(self.folder)

        def status_of(entry: dict[str, Any]) -> str:
            dead = entry["status"] == "running" and (holder is None or entry.get("process", holder) != holder)
            return "interrupted" if dead else str(entry["status"])

        return {name: status_of(entry) for name, entry in self.read()["stages"].items()}

    def result(self, stage: str, inputs: str) -> dict[str, Any] | None:
        """Return the result of `stage` if it is done for exactly these inputs, else None."""
        entry = self.read()["stages"].get(stage)
        if entry is None or entry["status"] != "done" or entry["inputs"] != inputs:
            return None
        result: dict[str, Any] = entry["result"]
        return result

    def begin(self, stage: str, inputs: str) -> None:
        """Record that this process runs the stage."""
        entry = {"status": "running", "inputs": inputs, "started": time.time(), "process": this_process()}
        self._write(stage, entry)

    def note_progress(self, stage: str, progress: Mapping[str, Any]) -> None:
        """Record how far the running stage is, at most every few seconds. A disk that refuses it is no reason to fail."""
        if time.monotonic() - self._noted < PROGRESS_SECONDS:
            return
        self._noted = time.monotonic()
        with suppress(OSError):
            entry = self.read()["stages"].get(stage)
            if entry is not None and entry["status"] == "running":
                self._write(stage, {**entry, "progress": {**progress, "seen": time.time()}})

    def finish(self, stage: str, inputs: str, result: dict[str, Any]) -> None:
        """Record that the stage is done, with its result."""
        self._write(stage, {"status": "done", "inputs": inputs, **self._times(stage), "result": result})

    def end(self, stage: str, inputs: str, status: str, reason: str) -> None:
        """Record that the stage did not finish: it "failed", was "stopped" on request, or "interrupted"."""
        self._write(stage, {"status": status, "inputs": inputs, **self._times(stage), "reason": reason})

    def run_stages(self, inputs: Mapping[str, str], work: Callable[[], T]) -> T:
        """Return work(); if it raises, record how the stages ended.

        Args:
            inputs: the digest of the inputs of each stage that `work` runs.
            work: what the stages do; they must have begun.

        Raises RunFailedError in place of WorkersFailedError; tracebacks of workers go to failure.log, not to the screen.
        """
        try:
            return work()
        except BaseException as error:
            status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
            for stage, digest in inputs.items():
                with suppress(OSError):  # such as a full disk, which may be what ended the stage
                    self.end(stage, digest, status, str(error) or type(error).__name__)
            if not isinstance(error, WorkersFailedError):
                raise
            log = self.folder / "failure.log"
            details = ""
            with suppress(OSError):
                write_text_atomically(log, error.trace)
                details = f"; details in {log}"
            raise RunFailedError(
                f"{', '.join(inputs)}: {error}{details}. Run the same command again to resume from the newest checkpoint"
            ) from None

    def _times(self, stage: str) -> dict[str, float]:
        """Return when the stage started, if that is known, and now as its end."""
        entry = self.read()["stages"].get(stage, {})
        started = {"started": entry["started"]} if entry.get("status") == "running" else {}
        return {**started, "finished": time.time()}

    def _write(self, stage: str, entry: dict[str, Any]) -> None:
        state = self.read()
        state["stages"][stage] = entry
        write_json_atomically(self._path, state)
