"""Mailbox between the driver and the workers of one launch: jobs and the request to stop one way, events the other.

A Ray actor in its own process. It imports neither torch nor the trainer, so the process starts at once. When Ray Train restarts
the workers after a failure, a new attempt begins: it runs the newest job again, and what workers of earlier attempts still send
is ignored.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class WorkerFailure:
    """Reason why a rank failed."""

    rank: int
    # Type and first line of the error.
    cause: str
    # The message for the user if the user can fix it, else None.
    user_message: str | None
    # The traceback, for the log.
    trace: str


@dataclass(frozen=True)
class Place:
    """The process of a rank."""

    # Name of its machine.
    host: str
    # Ray's id of its node.
    node: str
    pid: int
    # When the process was created, in seconds since 1970: a number may pass to another process.
    created: float


@dataclass(frozen=True)
class Beat:
    """The last sign of life of a rank."""

    place: Place
    # What the rank does: "start", "data", "step", "evaluation" or "checkpoint".
    phase: str = "start"
    # Steps trained.
    step: int = 0
    # Seconds for which the rank has been in this phase of this step, when it sent the sign.
    seconds: float = 0.0
    # Seconds since the sign arrived.
    age: float = 0.0
    # Bytes of memory that this process used, and that its machine had left.
    used_bytes: int = 0
    free_bytes: int | None = None


@dataclass(frozen=True)
class Status:
    """Answer to a poll of the driver."""

    # Events since the last poll.
    events: list[dict[str, Any]]
    # Ranks that are done with the newest job.
    num_done: int
    # Number of ranks of this attempt; None until one has arrived.
    world_size: int | None
    # The last sign of life of each rank that has arrived and is not done.
    beats: dict[int, Beat]


@dataclass
class _Attempt:
    """The state of one group of workers."""

    number: int = 1
    world_size: int | None = None
    failures: list[WorkerFailure] = field(default_factory=list)
    # By rank: why the driver killed it.
    accused: dict[int, str] = field(default_factory=dict)
    beats: dict[int, tuple[Beat, float]] = field(default_factory=dict)


class Mailbox:
    """Holds messages until they are fetched. Jobs are numbered from 1 and sent one after another."""

    def __init__(self) -> None:
        self._number = 0
        self._job: bytes | None = None
        self._events: list[dict[str, Any]] = []
        self._results: dict[int, bytes] = {}
        self._stop = False
        self._saves = 0
        self._attempt = _Attempt()
        self._newest_step = 0

    def give(self, pickled_job: bytes | None) -> None:
        """Store the next job, or None to say that there will be no more."""
        self._number += 1
        self._job = pickled_job
        self._results = {}
        self._stop = False

    def job(self) -> tuple[int, bytes | None]:
        """Return the newest job and its number, which is 0 until there is a job."""
        return self._number, self._job

    def enter(self, rank: int, world_size: int, place: Place) -> int:
        """Register a rank, and return the number of the attempt that it belongs to."""
        self._attempt.world_size = world_size
        self._attempt.beats[rank] = (Beat(place), time.monotonic())
        return self._attempt.number

    def beat(self, attempt: int, rank: int, beat: Beat) -> None:
        """Store a sign of life."""
        if attempt == self._attempt.number:
            self._attempt.beats[rank] = (beat, time.monotonic())
            self._newest_step = max(self._newest_step, beat.step)

    def push(self, event: dict[str, Any]) -> None:
        """Store an event of a worker."""
        self._events.append(event)

    def drain(self) -> Status:
        """Return what happened since the last call, and where the ranks are."""
        events = self._events
        self._events = []
        now = time.monotonic()
        beats = {
            rank: replace(beat, age=now - arrived)
            for rank, (beat, arrived) in self._attempt.beats.items()
            if rank not in self._results
        }
        return Status(events, len(self._results), self._attempt.world_size, beats)

    def request_stop(self) -> None:
        """Ask the workers to stop."""
        self._stop = True

    def request_save(self) -> None:
        """Ask the workers to save a checkpoint at once, and to go on."""
        self._saves += 1

    def requests(self) -> tuple[bool, int]:
        """Return whether the workers are asked to stop, and how often they were asked to save a checkpoint."""
        return self._stop, self._saves

    def finish(self, attempt: int, rank: int, pickled_result: bytes) -> None:
        """Store the result of a rank."""
        if attempt == self._attempt.number:
            self._results[rank] = pickled_result

    def fail(self, attempt: int, failure: WorkerFailure) -> None:
        """Store the failure of a rank."""
        if attempt == self._attempt.number:
            self._attempt.failures.append(failure)

    def accuse(self, rank: int, cause: str) -> None:
        """Store why the driver kills a rank. The first reason stays."""
        self._attempt.accused.setdefault(rank, cause)

    def failed(self) -> tuple[list[WorkerFailure], dict[int, str], dict[int, Beat], int]:
        """Return the failures of this attempt, why ranks were killed, their last signs, and the newest step of all attempts."""
        beats = {rank: beat for rank, (beat, _) in self._attempt.beats.items()}
        return self._attempt.failures, self._attempt.accused, beats, self._newest_step

    def restart(self, event: dict[str, Any]) -> None:
        """Begin another attempt, and tell the driver."""
        self._events.append(event)
        self._results = {}
        self._saves = 0
        self._attempt = _Attempt(self._attempt.number + 1)

    def outcome(self) -> tuple[dict[int, bytes], list[WorkerFailure]]:
        """Return the results of the newest job by rank, still pickled, since only the driver knows their types, and failures."""
        return self._results, self._attempt.failures
