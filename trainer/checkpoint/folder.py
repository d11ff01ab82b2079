"""The folder of checkpoints: names, commits, verification, retention. No torch: the command line lists and verifies with it.

    checkpoints/
      step_000001000/           committed: its manifest.json says what it is and the sha256 of every file
      .step_000001000.<hex>/    an attempt that is being written, or was left behind by a process that died
      best.json                 {"step", "metric", "value"} of the best checkpoint so far

The invariant: a folder named step_* was renamed from a finished attempt, so it is complete or it does not exist.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.storage.files import digest_of, hash_file, sync_folder, write_json_atomically

FORMAT_VERSION = 2


@dataclass(frozen=True)
class CheckpointManifest:
    """Everything of a checkpoint that is not a tensor.

    position: examples trained since the start of the run, one global number, and num_rows: examples of an epoch (rows, or
    windows of rows: trainer/data/stream/examples.py); metrics: the state of early stopping;
    files: {name: {"sha256", "num_bytes"}}; versions: of torch and torchrec; days: how far training by days has come, none in
    epochs (trainer/tasks/ranking/daily_training.py).
    """

    step: int
    position: int
    num_rows: int
    identity: dict[str, Any]
    config: dict[str, Any]
    plan: dict[str, Any]
    dataset_digest: str
    metrics: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]]
    days: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk."""

    path: Path
    manifest: CheckpointManifest


def name_of(step: int) -> str:
    return f"step_{step:09d}"


def new_attempt(folder: Path, step: int) -> Path:
    """A fresh folder to write checkpoint `step` into."""
    attempt = _hidden(folder, name_of(step))
    attempt.mkdir(parents=True)
    return attempt


def commit(attempt: Path, manifest: CheckpointManifest) -> Path:
    """Write the manifest, then rename the attempt to its final name: from here on the checkpoint exists.

    The files must have been flushed to the disk. Their names are flushed before the rename, and its own name after it, so that a
    power failure leaves the whole checkpoint or none.
    """
    values = asdict(manifest)
    write_json_atomically(attempt / "manifest.json", {**values, "sha256": digest_of(values)})
    final = attempt.parent / name_of(manifest.step)
    if final.exists():
        # Only a checkpoint that failed verification is ever written again; it makes room for its replacement.
        shutil.rmtree(final)
    attempt.rename(final)
    sync_folder(final.parent)
    sync_folder(final.parent.parent)  # the folder of checkpoints may be new itself
    return final


def _hidden(folder: Path, name: str) -> Path:
    """Return a fresh path that no reader takes for a checkpoint, and that `remove_attempts` removes."""
    return folder / f".{name}.{uuid.uuid4().hex[:8]}"


def committed(folder: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    return sorted((p for p in folder.glob("step_*") if (p / "manifest.json").is_file()), reverse=True)


def read(path: Path) -> CheckpointManifest:
    """Raises CheckpointError if there is no readable manifest, or one of another format.

    Where there is no such checkpoint, the message lists those beside it.
    """
    if not path.is_dir():
        others = ", ".join(other.name for other in committed(path.parent)) or "none"
        raise CheckpointError(f"checkpoint {path}: no such checkpoint; {path.parent} has {others}")
    try:
        values = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if values["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {path}: format version {values['format_version']}, this shoal reads {FORMAT_VERSION}"
            )
        expected = values.pop("sha256")
        manifest = CheckpointManifest(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"checkpoint {path}: manifest.json cannot be read ({error!r})") from None
    if digest_of(values) != expected:
        raise CheckpointError(f"checkpoint {path}: manifest.json is corrupt (its content is not what its sha256 says)")
    return manifest


def verify(path: Path) -> CheckpointManifest:
    """Read the manifest and compare every file with its hash. Raises CheckpointError naming the file."""
    manifest = read(path)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path}: {name} is missing")
        if file.stat().st_size != expected["num_bytes"]:
            raise CheckpointError(
                f"checkpoint {path}: {name} has {file.stat().st_size} bytes, the manifest says {expected['num_bytes']}"
            )
        if hash_file(file) != expected["sha256"]:
            raise CheckpointError(f"checkpoint {path}: {name} is corrupt (its sha256 is not the manifest's)")
    return manifest


def newest(folder: Path) -> tuple[StoredCheckpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    complaints: list[str] = []
    for path in committed(folder):
        try:
            return StoredCheckpoint(path, verify(path)), complaints
        except CheckpointError as error:
            complaints.append(str(error))
    return None, complaints


def write_best(folder: Path, step: int, metric: str, value: float) -> None:
    write_json_atomically(folder / "best.json", {"step": step, "metric": metric, "value": value})


def read_best(folder: Path) -> dict[str, Any] | None:
    """{"step", "metric", "value"}, or None if no evaluation has chosen one."""
    try:
        best: dict[str, Any] = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return best


def to_evaluate(folder: Path) -> StoredCheckpoint:
    """The best checkpoint if training chose one and it verifies, else the newest. Raises CheckpointError if there is none."""
    best = read_best(folder)
    complaints: list[str] = []
    if best is not None:
        path = folder / name_of(best["step"])
        try:
            return StoredCheckpoint(path, verify(path))
        except CheckpointError as error:
            complaints.append(str(error))
    found, more = newest(folder)
    if found is None:
        detail = "; ".join(dict.fromkeys(complaints + more)) or "there is none"
        raise CheckpointError(f"checkpoints {folder}: no usable checkpoint ({detail}); run `shoal train` first")
    return found


def retire(folder: Path, keep: int, warn: Callable[[str], None]) -> list[Path]:
    """Delete all but the newest `keep` and the best, and what an earlier call could not delete. Returns what was deleted.

    What cannot be deleted is passed to `warn`, and tried again by the next call: it is no reason to end a training whose newest
    checkpoint is committed. Only while no attempt is being written.
    """
    best = read_best(folder)
    pinned = {name_of(best["step"])} if best is not None else set()
    retired = []
    for path in [path for path in committed(folder)[keep:] if path.name not in pinned]:
        # Out of sight first, by an atomic rename, so that no reader finds half a checkpoint.
        try:
            path.rename(_hidden(folder, path.name))
            retired.append(path)
        except OSError as error:
            warn(f"checkpoint {path} is no longer needed and could not be deleted ({error}); it will be tried again")
    for hidden in folder.glob(".step_*"):
        try:
            shutil.rmtree(hidden)
        except OSError as error:
            warn(f"{hidden}, part of a retired checkpoint, could not be deleted ({error}); it will be tried again")
    return retired


def remove_attempts(folder: Path) -> None:
    """Delete attempts that a dead process left behind. Only while no other process writes to this folder."""
    for path in folder.glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)
