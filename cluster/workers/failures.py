"""Causes of failed workers, as one line for people and a trace for the log. No ray."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.workers.mailbox import Beat, WorkerFailure
from trainer.errors import first_line

GIB = 1 << 30
LITTLE_MEMORY = 512 << 20  # bytes that may be gone within a second, before the next sign of life


@dataclass(frozen=True)
class Cause:
    """Cause of the failure of a group of workers."""

    # One line.
    text: str
    # For the log.
    trace: str
    # The message for the user if the user can correct it, else None.
    user_message: str | None = None


def cause_of(
    failures: list[WorkerFailure],
    errors: Mapping[int, BaseException],
    killed: Mapping[int, str] | None = None,
    beats: Mapping[int, Beat] | None = None,
) -> Cause | None:
    """Return the cause, or None if no rank is known to have failed.

    A rank that died reports nothing, and the others only see a broken connection. So the rank that is named first is one that the
    driver killed, then one that died, then the first that reported a failure.

    Args:
        failures: what ranks reported, in the order in which it arrived.
        errors: what Ray knows of each failed rank.
        killed: by rank, why the driver killed it.
        beats: the last sign of life of each rank, for its machine and phase.
    """
    trace = "\n".join([*(f.trace for f in failures), *(f"rank {r}: {e}" for r, e in sorted(errors.items()))])
    reported = {failure.rank for failure in failures}
    silent = {rank: error for rank, error in sorted(errors.items()) if rank not in reported}
    if killed:
        rank, reason = next(iter(sorted(killed.items())))
        return Cause(f"{_named(rank, beats)} {reason}{_others(len(reported | set(silent)) - 1)}", trace)
    if silent:
        rank, error = next(iter(silent.items()))
        beats = _up_to_date(rank, failures, beats)
        death = first_line(innermost(error)) + _memory(error, (beats or {}).get(rank))
        return Cause(f"{_named(rank, beats)} died{_place(rank, beats)}: {death}{_others(len(failures))}", trace)
    correctable = next((f.user_message for f in failures if f.user_message is not None), None)
    if correctable is not None:  # not before: what a rank says of its files may follow from the death of another
        return Cause(correctable, trace, correctable)
    if failures:
        first = failures[0]
        where = _place(first.rank, beats)
        text = f"{_named(first.rank, beats)} failed{where}: {first.cause}{_others(len(failures) - 1)}"
        return Cause(text, trace)
    return None


def _memory(error: BaseException, beat: Beat | None) -> str:
    """Return a sentence if the rank was killed for memory, or probably was: the system kills without saying why."""
    if "running low on memory" in str(innermost(error)):
        return " Ray killed it because its machine ran low on memory"
    if beat is None or beat.free_bytes is None or beat.free_bytes > max(LITTLE_MEMORY, beat.used_bytes // 20):
        return ""
    return (
        f" It was probably killed for memory: it used {beat.used_bytes / GIB:.1f} GiB, and its machine had "
        f"{beat.free_bytes / GIB:.1f} GiB left"
    )


def phase_text(beat: Beat) -> str:
    """Return where a rank was, as part of a sentence."""
    match beat.phase:
        case "start":
            return "while it started"
        case "data":
            return f"while it read the data of step {beat.step + 1:,}"
        case "step":
            return f"in step {beat.step + 1:,}"
        case "evaluation":
            return f"in the evaluation after step {beat.step:,}"
        case "checkpoint":
            return f"while it saved the checkpoint of step {beat.step:,}"
        case other:
            return f"in {other}"


def _up_to_date(
    rank: int, failures: list[WorkerFailure], beats: Mapping[int, Beat] | None
) -> Mapping[int, Beat] | None:
    """Return the signs of life, that of a dead rank moved to where the others lost it.

    Signs come once a second, which may be many steps. Ranks are never more than a step apart.
    """
    beat = (beats or {}).get(rank)
    lost = max(failures, key=lambda failure: failure.step, default=None)
    if beats is None or beat is None or lost is None or lost.phase == "start":
        return beats
    if beat.phase != "start" and lost.step <= beat.step:
        return beats
    phase = "step" if lost.phase == "data" else lost.phase
    return {**beats, rank: replace(beat, phase=phase, step=lost.step)}


def _named(rank: int, beats: Mapping[int, Beat] | None) -> str:
    beat = (beats or {}).get(rank)
    return f"rank {rank}" if beat is None else f"rank {rank} on {beat.place.host}"


def _place(rank: int, beats: Mapping[int, Beat] | None) -> str:
    beat = (beats or {}).get(rank)
    return "" if beat is None else f" {phase_text(beat)}"


def innermost(error: BaseException) -> BaseException:
    """Return the error that Ray's wrappers hold."""
    for name in ("health_check_failure", "_base_exc"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return innermost(inner)
    return error


def _others(number: int) -> str:
    return f" ({number} more failed with it)" if number > 0 else ""
