"""Logs of training: metrics.jsonl, TensorBoard events, attempts.json, and the log of trained examples.

The invariant: after resuming, the files hold exactly the steps that the weights have seen, each once.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time as _now
from typing import Any, Protocol

from trainer.errors import UserError
from trainer.storage.files import naming, write_text_atomically
from trainer.storage.objects.spool import Spool

ATTEMPTS = "attempts.json"


@dataclass(frozen=True)
class TrainingTime:
    """Duration of a run's training, over all its attempts."""

    seconds: float
    """From the start of each attempt to its last line, validation and checkpoints included."""
    ended: float
    """The moment of the last line, in seconds since 1970."""


class LineSink(Protocol):
    """Another receiver of the lines of metrics.jsonl."""

    def log(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Receive a line."""

    def close(self) -> None:
        """Receive no more."""


class MetricsLog:
    """The metrics of a run: one JSON object per line, and the same numbers in TensorBoard. Only the first rank has one."""

    def __init__(self, run_dir: Path, resume_step: int, sinks: Sequence[LineSink] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only the first rank needs it

        self._spool = Spool(run_dir, "metrics")
        self.path = self._spool.fetch("metrics.jsonl")
        self._sinks = sinks
        truncate_after(self.path, resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._board_dir = self._spool.folder / "tensorboard"
        self._board = SummaryWriter(str(self._board_dir), purge_step=resume_step + 1)
        self._attempts_path = self._spool.folder / ATTEMPTS
        self._attempts = [*_read_attempts(run_dir), [_now(), _now()]]

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Append a line. Numbers become scalars of TensorBoard, named kind/name.

        Args:
            step: of training.
            kind: "train", "validation", "progressive", "skipped", "checkpoint" or "straggler".
            values: the rest of the line.
        """
        with naming(self.path):
            self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            self._file.flush()
        with naming(self._board_dir):
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        for sink in self._sinks:
            sink.log(step, kind, values)
        self._attempts[-1][1] = _now()
        with suppress(OSError):  # times are for reports only, and no reason to fail on a full disk
            self._attempts_path.write_text(json.dumps(self._attempts), encoding="utf-8")

    def close(self) -> None:
        """Close all files."""
        with naming(self.path):
            self._file.close()
        with naming(self._board_dir):
            self._board.close()
        for sink in self._sinks:
            sink.close()
        self._spool.close()

    def sync(self) -> None:
        """Upload the lines so far, if the run folder is on an object storage. Raises OSError."""
        self._spool.sync()


class SampleLog:
    """The ids of the examples that this rank trained, one line per step. For audits of exactly-once training.

    world_size: ranks that train now. An earlier attempt may have had more; the first rank removes their lines of lost steps.
    """

    def __init__(self, run_dir: Path, rank: int, resume_step: int, world_size: int = 1) -> None:
        # A run that an earlier version began keeps its folder, so that its log stays in one place.
        folder = run_dir / "ledger" if (run_dir / "ledger").exists() else run_dir / "sample_log"
        folder.mkdir(parents=True, exist_ok=True)
        self._spool = Spool(folder, f"sample_log-{rank}")
        self.path = self._spool.fetch(f"rank-{rank}.jsonl")
        truncate_after(self.path, resume_step)
        for other in folder.glob("rank-*.jsonl") if rank == 0 else ():
            if int(other.stem.removeprefix("rank-")) >= world_size:
                truncate_after(other, resume_step)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, row_ids: list[int]) -> None:
        """Write the ids of a step's examples."""
        with naming(self.path):
            self._file.write(json.dumps({"step": step, "row_ids": row_ids}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the files."""
        with naming(self.path):
            self._file.close()
        self._spool.close()

    def sync(self) -> None:
        """Upload the lines so far, if the run folder is on an object storage. Raises OSError."""
        self._spool.sync()


def truncate_after(path: Path, step: int) -> None:
    """Remove lines of steps after `step`, and a half-written last line. The checkpoint does not contain that work."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            break
    write_text_atomically(path, "".join(line + "\n" for line in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a metrics.jsonl. Raises UserError with the number of a line that is not JSON."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise UserError(f"{path}: line {number} is not JSON; the file was edited or damaged") from None
    return rows


def read_training_time(run_dir: Path) -> TrainingTime | None:
    """Return how long a run trained; None if it logged nothing, or its version did not record it."""
    attempts = _read_attempts(run_dir)
    if not attempts:
        return None
    return TrainingTime(sum(max(0.0, ended - started) for started, ended in attempts), attempts[-1][1])


def _read_attempts(run_dir: Path) -> list[list[float]]:
    """Return [start, last line] of each attempt, in seconds since 1970; none if the file is missing or damaged."""
    try:
        values = json.loads((run_dir / ATTEMPTS).read_text(encoding="utf-8"))
        return [[float(started), float(ended)] for started, ended in values]
    except (OSError, ValueError, TypeError):
        return []
