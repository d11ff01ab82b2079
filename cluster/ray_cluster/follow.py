"""Follows a Ray job: passes on its log from an offset, until a final state of the job is read.

A stream of the log may end at any time: its node is lost, a proxy closes the connection, the head restarts. Such an end says
nothing about the job. Only a state that the cluster reports ends the following, and each final state has an exit code.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import requests
from ray.job_submission import JobStatus

from cluster.errors import RunFailedError
from trainer.errors import first_line

POLL_SECONDS = 1.0
REOPEN_SECONDS = 2.0  # between two streams
LOST_SECONDS = 600.0  # without an answer of the cluster
PENDING_SECONDS = 20.0  # before a job that does not begin is mentioned
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
ENVIRONMENT_FAILED = "RUNTIME_ENV_SETUP_FAILURE"


class Client(Protocol):
    """The part of Ray's JobSubmissionClient that is used here."""

    def get_job_info(self, job_id: str) -> Any:
        """Return status, message, error_type and driver_exit_code."""

    def get_job_logs(self, job_id: str) -> str:
        """Return the whole log."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """Yield the log from its beginning, piece by piece, as it grows."""


@dataclass(frozen=True)
class JobEnd:
    """The final state of a job."""

    # "SUCCEEDED", "FAILED" or "STOPPED".
    status: str
    # Exit code for the command that follows the job.
    exit_code: int
    # Reason that Ray gives if the command of the job did not end by itself; otherwise None.
    reason: str | None


def follow(client: Client, job_id: str, on_log: Callable[[str], None], on_note: Callable[[str], None]) -> JobEnd:
    """Pass on the log of a job as it grows. Return the final state once the cluster reports one.

    Args:
        client: connection to the cluster.
        job_id: the job.
        on_log: called with each new part of the log. Each part is passed on once, also when a stream is lost.
        on_note: called with a line about the following itself, such as a lost connection.

    Raises:
        RunFailedError: the cluster no longer knows the job, or does not answer for LOST_SECONDS.
    """
    log = _Log(client, job_id, on_log)
    state = _State(client, job_id, on_note)
    try:
        while (info := state.read()) is None or info.status not in ENDED:
            log.show(POLL_SECONDS)
    finally:
        log.close()
    log.show_rest()
    return end_of(info)


def end_of(info: Any) -> JobEnd:
    """Return the end of a job that is in a final state."""
    status = JobStatus(info.status)
    code = getattr(info, "driver_exit_code", None)
    if status == JobStatus.SUCCEEDED:
        return JobEnd(status.value, 0, None)
    if code is not None and code != 0:
        # A process that a signal ended has a negative code. Shells add 128 to the number of the signal.
        return JobEnd(status.value, int(code) if code > 0 else 128 - int(code), None)
    error_type = str(getattr(getattr(info, "error_type", None), "value", getattr(info, "error_type", None)))
    reason = str(info.message).strip() if getattr(info, "message", None) else None
    if status == JobStatus.FAILED and error_type == ENVIRONMENT_FAILED:
        return JobEnd(status.value, 2, f"the runtime environment of the job could not be set up: {reason}")
    return JobEnd(status.value, 1, reason)


class _State:
    """Reads the state of a job, and tolerates a cluster that does not answer for a while."""

    def __init__(self, client: Client, job_id: str, on_note: Callable[[str], None]) -> None:
        self._client = client
        self._job_id = job_id
        self._on_note = on_note
        self._answered = time.monotonic()
        self._is_lost = False
        self._pending_since: float | None = time.monotonic()

    def read(self) -> Any | None:
        """Return what the cluster knows about the job, or None if it does not answer now."""
        try:
            info = self._client.get_job_info(self._job_id)
        except (RuntimeError, OSError, requests.RequestException) as error:
            self._count_silence(error)
            return None
        if self._is_lost:
            self._on_note("the cluster answers again")
        self._is_lost = False
        self._answered = time.monotonic()
        self._mention_pending(info)
        return info

    def _count_silence(self, error: Exception) -> None:
        if f"Job {self._job_id} does not exist" in str(error):
            raise RunFailedError(
                f"the cluster no longer knows job {self._job_id}: its head was started again without its records; submit the "
                "same run again to resume it"
            ) from None
        seconds = time.monotonic() - self._answered
        if seconds > LOST_SECONDS:
            raise RunFailedError(
                f"the cluster has not answered for {seconds:,.0f} s ({first_line(error)}), so the state of job {self._job_id} "
                "is unknown; the run folder has the run's own state (shoal status)"
            ) from None
        if not self._is_lost:
            self._is_lost = True
            self._on_note(f"the cluster does not answer ({first_line(error)}); trying for {LOST_SECONDS:,.0f} s")

    def _mention_pending(self, info: Any) -> None:
        if self._pending_since is None:
            return
        if info.status != JobStatus.PENDING:
            self._pending_since = None
        elif time.monotonic() - self._pending_since > PENDING_SECONDS:
            self._pending_since = time.monotonic()
            self._on_note(f"the job has not begun yet: {str(info.message).strip()}")


class _Log:
    """The log of a job. A thread reads a stream of it; a lost stream is replaced by another one, from the same offset."""

    def __init__(self, client: Client, job_id: str, on_log: Callable[[str], None]) -> None:
        self._client = client
        self._job_id = job_id
        self._on_log = on_log
        self._shown = 0  # characters passed on so far
        self._stream: _Stream | None = None
        self._reopens = 0.0

    def show(self, seconds: float) -> None:
        """Pass on what arrives within this time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stream is None and time.monotonic() >= self._reopens:
                self._stream = _Stream(self._client, self._job_id)
            if self._stream is None:
                time.sleep(min(left, REOPEN_SECONDS))
                continue
            piece = self._stream.next(left)
            if piece is None and self._stream.has_ended:
                self._stream = None
                self._reopens = time.monotonic() + REOPEN_SECONDS
            elif piece is not None:
                start, text = piece
                self._pass_on(start, text)

    def show_rest(self) -> None:
        """Pass on what a stream has not shown. A node that is gone has taken its log along."""
        with suppress(RuntimeError, OSError, requests.RequestException):
            self._pass_on(0, self._client.get_job_logs(self._job_id))

    def close(self) -> None:
        """Stop reading."""
        if self._stream is not None:
            self._stream.close()

    def _pass_on(self, start: int, text: str) -> None:
        """Pass on the part of a text that is new. start: offset of the text in the log."""
        new = text[max(0, self._shown - start) :]
        if new:
            self._on_log(new)
            self._shown = start + len(text)


class _Stream:
    """One stream of a log, read in a thread: Ray's client offers it only to asyncio."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._pieces: queue.Queue[tuple[int, str] | None] = queue.Queue()
        self._closed = threading.Event()
        self.has_ended = False
        threading.Thread(target=self._run, args=(client, job_id), daemon=True, name="job-log").start()

    def next(self, seconds: float) -> tuple[int, str] | None:
        """Return the offset and the text of the next piece; None if none arrives in time, or the stream has ended."""
        try:
            piece = self._pieces.get(timeout=seconds)
        except queue.Empty:
            return None
        if piece is None:
            self.has_ended = True
        return piece

    def close(self) -> None:
        """Stop reading, at the next piece."""
        self._closed.set()

    def _run(self, client: Client, job_id: str) -> None:
        try:
            asyncio.run(self._read(client, job_id))
        except Exception:  # noqa: BLE001 - a lost stream is replaced by another one, whatever ended it
            pass
        finally:
            self._pieces.put(None)

    async def _read(self, client: Client, job_id: str) -> None:
        offset = 0
        async for text in client.tail_job_logs(job_id):
            if self._closed.is_set():
                return
            self._pieces.put((offset, text))
            offset += len(text)
