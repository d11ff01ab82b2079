"""The mailbox between the driver and the workers of one launch: work and the request to stop one way, events the other.

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
    """Holds what was sent until it is asked for. Works are numbered from 1, and given one after another."""

    def __init__(self) -> None:
        self._number = 0
        self._work: bytes | None = None
        self._events: list[dict[str, Any]] = []
        self._failures: list[WorkerFailure] = []
        self._results: dict[int, bytes] = {}
        self._stop = False

    def give(self, pickled_work: bytes | None) -> None:
        """The next work, or None: there will be no more."""
        self._number += 1
        self._work, self._results, self._stop = pickled_work, {}, False

    def work(self) -> tuple[int, bytes | None]:
        """The newest work and its number: 0 until there is one."""
        return self._number, self._work

    def push(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def drain(self) -> tuple[list[dict[str, Any]], int]:
        """What was sent since the last time, and how many ranks are done with the newest work."""
        events, self._events = self._events, []
        return events, len(self._results)

    def request_stop(self) -> None:
        self._stop = True

    def stop_requested(self) -> bool:
        return self._stop

    def finish(self, rank: int, pickled_result: bytes) -> None:
        self._results[rank] = pickled_result

    def fail(self, failure: WorkerFailure) -> None:
        self._failures.append(failure)

    def outcome(self) -> tuple[dict[int, bytes], list[WorkerFailure]]:
        """Results of the newest work by rank, still pickled: only the driver knows their types."""
        return self._results, self._failures
