"""Checkpoints that are written while training continues.

`save` copies the tensors and returns. A thread checks and writes the copies, with collectives in a group of its own, and commits
the checkpoint when all ranks are done. One checkpoint is written at a time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sharding.world import World
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.folder import CheckpointManifest
from trainer.checkpoint.staging import Staging
from trainer.storage.retries import NO_RETRIES, Retries

Describe = Callable[[dict[str, dict[str, Any]]], CheckpointManifest]


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint, for reports."""

    step: int
    path: Path
    stall_seconds: float
    """How long training waited: for the copies, and for the end of the writing where it had to."""
    seconds: float
    """From the request to the commit."""
    num_bytes: int
    """Size of all files, on the first rank; 0 on the others."""


class BackgroundSaver:
    """Saves the checkpoints of one training. `save` and `finish` are collective.

    Args:
        folder: the folder of checkpoints.
        world: all ranks.
        in_background: False writes within `save`, as does a lack of memory for copies on any rank.
        after_commit: called on every rank after a commit, in the thread that wrote.
        before_write: called on every rank before its files are written, in the same thread. It must not raise.
        retries: the attempts after errors of the storage that may pass.
        warn: receives a text about each such error, on the first rank.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        in_background: bool,
        after_commit: Callable[[int], None] = lambda step: None,
        retries: Retries = NO_RETRIES,
        warn: Callable[[str], object] = lambda text: None,
        before_write: Callable[[], object] = lambda: None,
    ) -> None:
        self._before_write = before_write
        self._folder = folder
        self._world = world
        self._beside = world.beside() if in_background else world
        self._in_background = in_background
        self._after_commit = after_commit
        self._retries = retries
        self._warn = warn
        self._staging = Staging(world.device)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved: deque[Saved] = deque()

    def save(self, state: dict[str, Any], describe: Describe, step: int) -> None:
        """Save a checkpoint of this moment, after the previous one is committed.

        Args:
            state: the tensors by name; they may change as soon as this returns.
            describe: returns the manifest, from the hashes and sizes of the files. It must not depend on what changes later.
            step: the steps trained.

        Raises:
            NonFiniteWeightsError, CheckpointError: from this checkpoint if it is not written in the background, or from the
                previous one.
        """
        started = time.monotonic()
        self.finish()
        if not self._in_background or not self._all_fit(state):
            self._write(self._world, state, describe, step, started, None)
            return
        copied = self._staging.copy(state)
        stall = time.monotonic() - started
        self._thread = threading.Thread(
            target=self._run, args=(copied, describe, step, started, stall), daemon=True, name="checkpoint"
        )
        self._thread.start()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is committed. Raises what went wrong with it, on all ranks."""
        if self._thread is not None:
            started = time.monotonic()
            self._thread.join()
            self._thread = None
            if self._error is None and self._saved:  # otherwise it was reported before, and nothing waited
                waited = time.monotonic() - started
                self._saved[-1] = replace(self._saved[-1], stall_seconds=self._saved[-1].stall_seconds + waited)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self, seconds: float) -> None:
        """Wait for the checkpoint that is being written, but not longer than this. Raises nothing: for a training that failed."""
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def error(self) -> BaseException | None:
        """Return why the last checkpoint could not be written, as `finish` raises it."""
        return self._error

    def collect(self) -> list[Saved]:
        """Return the checkpoints that were committed since the last call."""
        # Taken one by one: the thread may append at any moment.
        return [self._saved.popleft() for _ in range(len(self._saved))]

    def _all_fit(self, state: dict[str, Any]) -> bool:
        """Return whether copies fit into the memory of all ranks."""
        return sum(self._world.gather_ints(int(not self._staging.fits(state)))) == 0

    def _run(self, copied: dict[str, Any], describe: Describe, step: int, started: float, stall: float) -> None:
        try:
            self._write(self._beside, copied, describe, step, started, stall)
        except BaseException as error:  # noqa: BLE001 - a thread boundary: it is raised again by finish
            self._error = error

    def _write(
        self, world: World, state: dict[str, Any], describe: Describe, step: int, started: float, stall: float | None
    ) -> None:
        self._before_write()
        path = checkpoint_tensors.save(self._folder, state, world, describe, step, self._retries, self._warn)
        num_bytes = checkpoint_folder.size_of(path) if world.is_first else 0
        self._after_commit(step)
        seconds = time.monotonic() - started
        self._saved.append(Saved(step, path, seconds if stall is None else stall, seconds, num_bytes))
