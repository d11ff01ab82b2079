"""Mailbox between the driver and the workers of one launch: jobs and the request to stop one way, events the other.

A Ray actor in its own process. It imports neither torch nor the trainer, so the process starts at once.
"""

from dataclasses import dataclass
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


class Mailbox:
    """Holds messages until they are fetched. Jobs are numbered from 1 and sent one after another."""

    def __init__(self) -> None:
        self._number = 0
        self._job: bytes | None = None
        self._events: list[dict[str, Any]] = []
        self._failures: list[WorkerFailure] = []
        self._results: dict[int, bytes] = {}
        self._stop = False

    def give(self, pickled_job: bytes | None) -> None:
        """Store the next job, or None to say that there will be no more."""
        self._number += 1
        self._job = pickled_job
        self._results = {}
        self._stop = False

    def job(self) -> tuple[int, bytes | None]:
        """Return the newest job and its number, which is 0 until there is a job."""
        return self._number, self._job

    def push(self, event: dict[str, Any]) -> None:
        """Store an event of a worker."""
        self._events.append(event)

    def drain(self) -> tuple[list[dict[str, Any]], int]:
        """Return the events since the last call, and the number of ranks that are done with the newest job."""
        events = self._events
        self._events = []
        return events, len(self._results)

    def request_stop(self) -> None:
        """Ask the workers to stop."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Return whether the workers are asked to stop."""
        return self._stop

    def finish(self, rank: int, pickled_result: bytes) -> None:
        """Store the result of a rank."""
        self._results[rank] = pickled_result

    def fail(self, failure: WorkerFailure) -> None:
        """Store the failure of a rank."""
        self._failures.append(failure)

    def outcome(self) -> tuple[dict[int, bytes], list[WorkerFailure]]:
        """Return the results of the newest job by rank, still pickled, since only the driver knows their types, and failures."""
        return self._results, self._failures
