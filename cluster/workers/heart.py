"""Signs of life of a rank, and the time that it takes to start a job."""

import threading
import time
from typing import Any

import psutil

from cluster.workers.mailbox import Beat, Place, WorkerFailure
from cluster.workers.memory import free_memory

BEAT_SECONDS = 1.0


class Heart(threading.Thread):
    """Sends signs of life from a thread of its own, so that they continue while the rank waits in a collective.

    After a failure it also measures how long this group takes until it trains again, and the first rank reports it.
    """

    def __init__(self, mailbox: Any, attempt: int, rank: int, place: Place) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self._place = place
        self._process = psutil.Process()
        self._mailbox = mailbox
        self._attempt = attempt
        self._rank = rank
        self._stopped = threading.Event()
        self._where = ("start", 0, 0, time.monotonic())
        self._lapped = time.monotonic()
        self._parts: dict[str, float] = {}
        self._start: tuple[int, int] | None = None  # steps and examples trained when the job began to work
        self._has_reported = False

    def begin(self) -> None:
        """Note that a job begins."""
        self._start = None
        self.note("start", 0)

    def note(self, phase: str, step: int, examples: int = 0) -> None:
        """Note where the rank is. Cheap enough for every step. examples: trained since the start of the run."""
        self._where = (phase, step, examples, time.monotonic())
        if self._has_reported or phase == "start":
            return
        if self._start is None:
            self._start = (step, examples)
        elif step > self._start[0]:
            self._report(*self._start)

    def lap(self, name: str) -> None:
        """Note the end of a part of the start."""
        now = time.monotonic()
        self._parts[name] = self._parts.get(name, 0.0) + now - self._lapped
        self._lapped = now

    def run(self) -> None:
        """Send a sign of life a second."""
        while not self._stopped.wait(BEAT_SECONDS):
            phase, step, examples, since = self._where
            used = self._process.memory_info().rss
            seconds = time.monotonic() - since
            beat = Beat(self._place, phase, step, seconds, used_bytes=used, free_bytes=free_memory(), examples=examples)
            self._mailbox.beat.remote(self._attempt, self._rank, beat)

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()

    def failure(self, cause: str, user_message: str | None, trace: str) -> WorkerFailure:
        """Return the failure of this rank, with how far it was. Arguments as the fields of WorkerFailure."""
        phase, step, examples, _ = self._where
        return WorkerFailure(self._rank, cause, user_message, trace, step, examples, phase)

    def _report(self, step: int, examples: int) -> None:
        """Report once how long the start took."""
        self._has_reported = True
        self.lap("first step")
        if self._rank == 0:
            self._mailbox.training.remote(self._attempt, step, examples, self._parts)
