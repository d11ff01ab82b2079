"""The mailbox between the driver and the workers of one launch: events one way, the request to stop the other.

A Ray actor in a process of its own. It imports neither torch nor the trainer, so that the process starts at once.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WorkerFailure:
    """Why a rank failed: `user_message` if it is the user's to mend; `trace` for the log."""

    rank: int
    cause: str
    user_message: str | None
    trace: str


class Monitor:
    """Holds what was sent until it is asked for."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._failures: list[WorkerFailure] = []
        self._results: dict[int, Any] = {}
        self._stop = False

    def push(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def drain(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def request_stop(self) -> None:
        self._stop = True

    def stop_requested(self) -> bool:
        return self._stop

    def finish(self, rank: int, pickled_result: bytes) -> None:
        self._results[rank] = pickled_result

    def fail(self, failure: WorkerFailure) -> None:
        self._failures.append(failure)

    def outcome(self) -> tuple[dict[int, bytes], list[WorkerFailure]]:
        """Results by rank, still pickled: only the driver knows their types."""
        return self._results, self._failures
