"""Mailbox between the driver and the workers of one launch: jobs and the request to stop one way, events the other.

A Ray actor in its own process. It imports neither torch nor the trainer, so the process starts at once. When Ray Train restarts
the workers after a failure, a new attempt begins: it runs the newest job again, and what workers of earlier attempts still send
is ignored.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal


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
    # Steps trained, and examples trained since the start of the run.
    step: int = 0
    examples: int = 0
    # What the rank did, as in Beat.
    phase: str = "start"


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
    # Examples trained since the start of the run: the data position.
    examples: int = 0


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
    # The number of the group of workers: 1, and one more after each restart.
    attempt: int = 1


@dataclass(frozen=True)
class Move:
    """A restart of healthy workers on other nodes, from a checkpoint that they save for it."""

    cause: Literal["preemption", "resize"]
    # The reason, for people.
    text: str


@dataclass(frozen=True)
class Interruption:
    """Progress of a training when its workers failed, and the time of the failure. Times are seconds since 1970."""

    # The last sign of life of the rank that was silent first.
    failed: float
    # When the restart was decided.
    decided: float
    # Steps trained, and examples trained since the start of the run.
    step: int
    examples: int


@dataclass
class _Attempt:
    """The state of one group of workers."""

    number: int = 1
    # The failure after which this attempt was started; None for the first attempt.
    after: Interruption | None = None
    # When the last of its ranks arrived, in seconds since 1970, and when the last of their processes was created.
    entered: float = 0.0
    created: float = 0.0
    world_size: int | None = None
    failures: list[WorkerFailure] = field(default_factory=list)
    # By rank: why the driver killed it.
    accused: dict[int, str] = field(default_factory=dict)
    beats: dict[int, tuple[Beat, float]] = field(default_factory=dict)
    # By rank: when it was last heard of, in seconds since 1970.
    heard: dict[int, float] = field(default_factory=dict)


class Mailbox:
    """Holds messages until they are fetched. Jobs are numbered from 1 and sent one after another.

    after: the failure of an earlier launch, after which this one was started.
    """

    def __init__(self, after: Interruption | None = None) -> None:
        self._number = 0
        self._job: bytes | None = None
        self._events: list[dict[str, Any]] = []
        self._results: dict[int, bytes] = {}
        self._stop = False
        self._saves = 0
        self._validations = 0
        self._move: Move | None = None
        self._placement_group: Any = None
        self._attempt = _Attempt(after=after)
        self._newest_step = 0 if after is None else after.step
        self._newest_examples = 0 if after is None else after.examples

    def give(self, pickled_job: bytes | None) -> None:
        """Store the next job, or None to say that there will be no more."""
        if self._number:  # a failure during the last job is over; one before the first job is of an earlier launch
            self._attempt.after = None
        self._number += 1
        self._job = pickled_job
        self._results = {}
        self._stop = False

    def job(self) -> tuple[int, bytes | None]:
        """Return the newest job and its number, which is 0 until there is a job."""
        return self._number, self._job

    def enter(self, rank: int, world_size: int, place: Place) -> int:
        """Register a rank, and return the number of the attempt that it belongs to."""
        before = self._attempt.world_size
        if before is not None and before != world_size:  # Ray Train resized the group, which is no failure
            text = f"the group has {world_size} workers now, {before} before; restarting from the newest checkpoint"
            self.restart({"kind": "restart", "text": text, "cause": "resize", "trace": "", "reason": text})
        attempt = self._attempt
        attempt.world_size = world_size
        attempt.beats[rank] = (Beat(place), time.monotonic())
        attempt.entered = attempt.heard[rank] = time.time()
        attempt.created = max(attempt.created, place.created)
        return attempt.number

    def beat(self, attempt: int, rank: int, beat: Beat) -> None:
        """Store a sign of life."""
        if attempt == self._attempt.number:
            self._attempt.beats[rank] = (beat, time.monotonic())
            self._hear(rank, beat.step, beat.examples)

    def reserve(self, placement_group: Any) -> None:
        """Store the resources that the workers of this attempt hold."""
        self._placement_group = placement_group

    def reserved(self) -> Any:
        """Return the resources that workers hold, or None if none has started."""
        return self._placement_group

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
        return Status(events, len(self._results), self._attempt.world_size, beats, self._attempt.number)

    def request_stop(self) -> None:
        """Ask the workers to stop."""
        self._stop = True

    def request_save(self) -> None:
        """Ask the workers to save a checkpoint at once, and to continue."""
        self._saves += 1

    def note_validation(self) -> None:
        """Note that a checkpoint was validated by other workers, and that the result is in the run folder."""
        self._validations += 1

    def request_move(self, move: Move) -> None:
        """Ask the workers to save a checkpoint and to start again from it. What they do now may end first."""
        self._move = move

    def move(self) -> Move | None:
        """Return the move that the workers are asked for, unless they are asked to stop for good."""
        return None if self._stop else self._move

    def is_stopped(self) -> bool:
        """Return whether the driver asked the workers to stop for good."""
        return self._stop

    def requests(self) -> tuple[bool, int, int]:
        """Return what the workers are asked to do.

        These are whether to stop, for good or for a move, how often to save a checkpoint, and how many checkpoints were validated
        by other workers.
        """
        return self._stop or self._move is not None, self._saves, self._validations

    def finish(self, attempt: int, rank: int, pickled_result: bytes) -> None:
        """Store the result of a rank."""
        if attempt == self._attempt.number:
            self._results[rank] = pickled_result

    def fail(self, attempt: int, failure: WorkerFailure) -> None:
        """Store the failure of a rank."""
        if attempt == self._attempt.number:
            self._attempt.failures.append(failure)
            self._hear(failure.rank, failure.step, failure.examples)

    def _hear(self, rank: int, step: int, examples: int) -> None:
        """Note that a rank lives, and how far it is."""
        self._attempt.heard[rank] = time.time()
        self._newest_step = max(self._newest_step, step)
        self._newest_examples = max(self._newest_examples, examples)

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
        self._move = None
        self._attempt = _Attempt(self._attempt.number + 1, self.interruption())

    def interruption(self) -> Interruption:
        """Return how far training was, if workers have failed now."""
        attempt, now = self._attempt, time.time()
        if attempt.number > 1 and not attempt.heard and attempt.after is not None:
            return replace(attempt.after, decided=now)  # the group failed again before a rank arrived
        return Interruption(min(attempt.heard.values(), default=now), now, self._newest_step, self._newest_examples)

    def training(self, attempt: int, start: int, examples: int, parts: dict[str, float]) -> None:
        """Tell the driver that ranks train again after a failure; called after the first step.

        Args:
            attempt: the attempt of the caller.
            start: the step of the checkpoint from which training resumed.
            examples: the examples trained until then.
            parts: seconds of each part of the start, since the first rank arrived.
        """
        current = self._attempt
        if attempt != current.number or current.after is None:
            return
        failure = current.after
        before = {
            "detection": failure.decided - failure.failed,
            "end of the group": current.created - failure.decided,
            "start of workers": current.entered - current.created,
        }
        event = {
            "kind": "recovered",
            "seconds": time.time() - failure.failed,
            "parts": {name: max(0.0, seconds) for name, seconds in (before | parts).items()},
            "steps": max(0, failure.step - start),
            "rows": max(0, failure.examples - examples),
        }
        current.after = None
        self._events.append(event)

    def outcome(self) -> tuple[dict[int, bytes], list[WorkerFailure]]:
        """Return the results of the newest job by rank, still pickled, since only the driver knows their types, and failures."""
        return self._results, self._attempt.failures
