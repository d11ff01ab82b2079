"""Log of the restarts of a run: restarts.jsonl in the run folder, one line per restart. No torch, no ray.

A line is written when workers fail, and completed when they train again. So a run that did not recover has a line too.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trainer.pages.text import duration_text
from trainer.storage.files import write_text_atomically
from trainer.storage.objects.spool import append_text

FILE = "restarts.jsonl"
EVALUATION = "evaluation"  # the cause of a restart that training does not wait for


@dataclass(frozen=True)
class Restart:
    """A restart of workers after a failure."""

    time: float
    """When it was decided, in seconds since 1970."""
    cause: str
    """ "failure", "preemption", or "resize" where workers were added; "evaluation" of workers that evaluate concurrently."""
    text: str
    """One line for people: who failed, where, why, and what was done."""
    trace: str = ""
    """Traces of the ranks."""
    seconds: float | None = None
    """Seconds from the last sign of life of the failed rank to the end of the next step; None if no step followed."""
    parts: dict[str, float] | None = None
    """Those seconds by part; the first rank's where ranks work side by side."""
    steps: int | None = None
    """Steps that were trained again."""
    rows: int | None = None
    """Examples that were trained again."""


def note_restart(run_dir: Path, cause: str, text: str, trace: str) -> None:
    """Append a restart. A full disk is no reason to fail."""
    line = _line_of(Restart(time.time(), cause, text, trace))
    with suppress(OSError):
        append_text(run_dir / FILE, line)


def note_recovery(run_dir: Path, seconds: float, parts: dict[str, float], steps: int, rows: int) -> None:
    """Complete the newest restart of training with the fields of Restart. A full disk is no reason to fail."""
    restarts = read_restarts(run_dir)
    newest = max((n for n, restart in enumerate(restarts) if restart.cause != EVALUATION), default=None)
    if newest is None or restarts[newest].seconds is not None:
        return
    rounded = {name: round(value, 2) for name, value in parts.items()}
    known = {**asdict(restarts[newest]), "seconds": round(seconds, 2), "parts": rounded, "steps": steps, "rows": rows}
    restarts[newest] = Restart(**known)
    lines = [_line_of(restart) for restart in restarts]
    with suppress(OSError):
        write_text_atomically(run_dir / FILE, "".join(lines))


def read_restarts(run_dir: Path) -> list[Restart]:
    """Return the restarts of a run, the oldest first. A line that a killed process left half-written is skipped."""
    try:
        lines = (run_dir / FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    names = {field.name for field in fields(Restart)}
    restarts = []
    for line in lines:
        with suppress(ValueError, TypeError):
            values: dict[str, Any] = json.loads(line)
            restarts.append(Restart(**{name: value for name, value in values.items() if name in names}))
    return restarts


def recovery_text(seconds: float, steps: int, rows: int) -> str:
    """Return what a recovery took, for people."""
    again = f"{steps:,} step{'s' * (steps != 1)} ({rows:,} rows) trained again" if steps else "nothing trained again"
    return f"training again after {duration_text(seconds)}; {again}"


def restarts_text(restarts: Sequence[Restart]) -> str:
    """Return a summary of restarts for people; empty without any."""
    if not restarts:
        return ""
    causes = {
        cause: sum(restart.cause == cause for restart in restarts) for cause in ("failure", "preemption", "resize")
    }
    causes["failed evaluation"] = sum(restart.cause == EVALUATION for restart in restarts)
    counted = ", ".join(f"{number} {cause}{'s' * (number > 1)}" for cause, number in causes.items() if number)
    again = [restart.seconds for restart in restarts if restart.seconds is not None]
    took = f", {duration_text(sum(again) / len(again))} on average until training again" if again else ""
    rows = sum(restart.rows or 0 for restart in restarts)
    return f"after {counted}{took}; {rows:,} rows trained again"


def _line_of(restart: Restart) -> str:
    return json.dumps({name: value for name, value in asdict(restart).items() if value is not None}) + "\n"
