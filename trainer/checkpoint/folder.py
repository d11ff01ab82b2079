"""The folder of checkpoints: names, commits, verification, retention. Imports no torch, since the command line uses it.

    checkpoints/
      step_000001000/           committed: its manifest.json describes it and has a hash of every file
      .step_000001000.<hex>/    an attempt that is being written, or that a dead process left behind
      best.json                 {"step", "metric", "value"} of the best checkpoint so far

The invariant: a folder named step_* was renamed from a finished attempt, so it is complete.

Objects cannot be renamed. On an object storage the attempt is a folder inside the checkpoint's, and its files stay there:

    checkpoints/
      step_000001000/
        manifest.json           written last: with it the checkpoint exists. It names the files of the attempt that it commits
        <hex>/                  the files of an attempt

The invariant there: each attempt has names of its own, so nothing overwrites the files of a committed one. Retention deletes
the manifest first.
"""

import errno
import json
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError
from trainer.storage.files import HASHES, digest_of, hash_file, sync_folder, write_json_atomically
from trainer.storage.objects.paths import ObjectPath, remove_tree

FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)  # files of version 2 have a sha256
FILE_HASH = "xxh3_128"


@dataclass(frozen=True)
class CheckpointManifest:
    """Everything in a checkpoint that is not a tensor."""

    step: int
    """Steps trained."""
    position: int
    """The data position: examples trained since the start of the run."""
    num_rows: int
    """Examples of an epoch: rows, or windows of rows (trainer/data/stream/examples.py)."""
    identity: dict[str, Any]
    """The flat settings that identify the run; training resumes only under the same."""
    config: dict[str, Any]
    """The resolved config."""
    plan: dict[str, Any]
    """The plan of the tables."""
    dataset_digest: str
    """The digest of the dataset."""
    metrics: dict[str, Any]
    """The state of early stopping and the counts of skipped steps (trainer/loop/state.py)."""
    versions: dict[str, str]
    """The versions of torch and torchrec."""
    files: dict[str, dict[str, Any]]
    """{name: {FILE_HASH, "num_bytes"}} of every file."""
    days: dict[str, Any] | None = None
    """The position in daily training (trainer/loop/days.py). None where training goes by epochs."""
    format_version: int = FORMAT_VERSION
    """The version of this format."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk."""

    path: Path
    """Its folder."""
    manifest: CheckpointManifest
    """Its manifest."""

    @property
    def data(self) -> Path:
        """The folder of its files, which on an object storage is one inside its own."""
        inner = {Path(name).parent for name in self.manifest.files}
        return self.path / inner.pop() if len(inner) == 1 else self.path


def name_of(step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"step_{step:09d}"


def new_attempt(folder: Path, step: int) -> Path:
    """Create a fresh folder for the attempt to write checkpoint `step`, and return it."""
    attempt = _hidden(folder, name_of(step))
    if isinstance(folder, ObjectPath):
        attempt = folder / name_of(step) / uuid.uuid4().hex[:8]
    attempt.mkdir(parents=True)
    return attempt


def commit(attempt: Path, manifest: CheckpointManifest) -> Path:
    """Write the manifest, then rename the attempt to its final name, with which the checkpoint exists. Return the new path.

    The files must have been flushed to the disk. Their names are flushed before the rename, and the name of the folder after it,
    so that a power failure leaves the whole checkpoint or none. After an error, a second call continues where the first one ended.
    """
    if isinstance(attempt, ObjectPath):
        return _commit_objects(attempt, manifest)
    values = asdict(manifest)
    final = attempt.parent / name_of(manifest.step)
    if attempt.exists() or not final.exists():
        write_json_atomically(attempt / "manifest.json", {**values, "sha256": digest_of(values)})
        if final.exists():
            # Only a checkpoint that failed verification is written again. The new one replaces it.
            remove_tree(final)
        attempt.rename(final)
    sync_folder(final.parent)
    sync_folder(final.parent.parent)  # the folder of checkpoints may be new itself
    return final


def _commit_objects(attempt: ObjectPath, manifest: CheckpointManifest) -> Path:
    """Write the manifest of objects that have been written, and delete those of earlier attempts. Return the checkpoint's path."""
    final = attempt.parent
    files = {f"{attempt.name}/{name}": entry for name, entry in manifest.files.items()}
    values = {**asdict(manifest), "files": files}
    write_json_atomically(final / "manifest.json", {**values, "sha256": digest_of(values)})
    _remove_other_attempts(final, attempt.name)
    return final


def _remove_other_attempts(path: Path, kept: str) -> None:
    """Delete the folders inside a checkpoint's except the one that its manifest names. One that cannot be deleted stays."""
    for inner in path.glob("*"):
        if inner.name not in (kept, "manifest.json"):
            remove_tree(inner, ignore_errors=True)


def _hidden(folder: Path, name: str) -> Path:
    """Return a fresh path that readers ignore and `remove_attempts` removes."""
    return folder / f".{name}.{uuid.uuid4().hex[:8]}"


def committed(folder: Path) -> list[Path]:
    """Return the folders of committed checkpoints, newest first."""
    return sorted((p for p in folder.glob("step_*") if (p / "manifest.json").is_file()), reverse=True)


def present(folder: Path) -> list[Path]:
    """Return the folders with the name of a checkpoint, newest first. One without a manifest has lost it after its commit.

    On an object storage, one without a manifest was never committed, and is left out.
    """
    if isinstance(folder, ObjectPath):
        return committed(folder)
    return sorted((path for path in folder.glob("step_*") if path.is_dir()), reverse=True)


def read(path: Path) -> CheckpointManifest:
    """Return the manifest of a checkpoint.

    Raises:
        CheckpointError: It cannot be read, or has another format version. If there is no such checkpoint, the message lists the
            others in the same folder.
        OSError: Its storage does not answer.
    """
    if not path.is_dir():
        others = ", ".join(other.name for other in committed(path.parent)) or "none"
        raise CheckpointError(f"checkpoint {path}: no such checkpoint; {path.parent} has {others}")
    try:
        text = (path / "manifest.json").read_text(encoding="utf-8")
        values = json.loads(text)
        is_as_written = text == json.dumps(values, indent=1)
        if values["format_version"] not in READABLE_VERSIONS:
            raise CheckpointError(
                f"checkpoint {path}: format version {values['format_version']}, this shoal reads "
                f"{' and '.join(map(str, READABLE_VERSIONS))}"
            )
        expected = values.pop("sha256")
        manifest = CheckpointManifest(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, OSError) and error.errno == errno.EREMOTEIO:
            raise  # the storage does not answer, which says nothing about the checkpoint
        raise CheckpointError(f"checkpoint {path}: manifest.json cannot be read ({error!r})") from None
    # Space between values is compared too: a byte that changed there shows that the disk is not to be trusted.
    if digest_of(values) != expected or not is_as_written:
        raise CheckpointError(f"checkpoint {path}: manifest.json is corrupt (its content does not match its sha256)")
    return manifest


def size_of(path: Path) -> int:
    """Return the size of all files of a committed checkpoint in bytes."""
    if isinstance(path, ObjectPath):  # a request for each file would take long with many ranks
        return sum(entry["num_bytes"] for entry in read(path).files.values())
    return sum(file.stat().st_size for file in path.iterdir())


def verify(path: Path) -> CheckpointManifest:
    """Compare every file with its hash, and return the manifest. Raises CheckpointError with the name of the file."""
    manifest = read(path)
    check_files(path, manifest)
    return manifest


def check_files(path: Path, manifest: CheckpointManifest, share: int = 0, num_shares: int = 1) -> None:
    """Compare one of `num_shares` shares of the files with their hashes. Raises CheckpointError with the name of the file."""
    for name in _share_of_files(manifest, share, num_shares):
        expected = manifest.files[name]
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path}: {name} is missing")
        if file.stat().st_size != expected["num_bytes"]:
            raise CheckpointError(
                f"checkpoint {path}: {name} has {file.stat().st_size} bytes, the manifest says {expected['num_bytes']}"
            )
        kind = next(kind for kind in HASHES if kind in expected)
        if hash_file(file, kind) != expected[kind]:
            raise CheckpointError(f"checkpoint {path}: {name} is corrupt (its {kind} is not the manifest's)")


def _share_of_files(manifest: CheckpointManifest, share: int, num_shares: int) -> list[str]:
    """Return the files of a share: those that the rank of that number wrote, and probably loads next, and some of the others."""
    by_size = sorted(manifest.files, key=lambda name: (-manifest.files[name]["num_bytes"], name))
    writers = {name: re.match(r"__(\d+)_", Path(name).name) for name in by_size}
    return [
        name
        for place, name in enumerate(by_size)
        if (int(writer[1]) if (writer := writers[name]) else place) % num_shares == share
    ]


def newest(folder: Path) -> tuple[StoredCheckpoint | None, list[str]]:
    """Return the newest checkpoint that verifies, and a message for each newer one that does not."""
    complaints: list[str] = []
    for path in present(folder):
        try:
            return StoredCheckpoint(path, verify(path)), complaints
        except CheckpointError as error:
            complaints.append(str(error))
    return None, complaints


def write_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Write best.json, which names the best checkpoint so far."""
    write_json_atomically(folder / "best.json", {"step": step, "metric": metric, "value": value})


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return best.json: {"step", "metric", "value"}. None if no evaluation has chosen a checkpoint."""
    try:
        best: dict[str, Any] = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return best


def to_evaluate(folder: Path, warn: Callable[[str], object]) -> StoredCheckpoint:
    """Return the best checkpoint if training chose one and it verifies, else the newest.

    Args:
        folder: The folder of checkpoints.
        warn: Receives a message if the best one, or a newer one, cannot be used.

    Raises:
        CheckpointError: There is none that verifies.
    """
    best = read_best(folder)
    complaints: list[str] = []
    if best is not None:
        path = folder / name_of(best["step"])
        try:
            return StoredCheckpoint(path, verify(path))
        except CheckpointError as error:
            complaints.append(str(error))
    checkpoint, more = newest(folder)
    if checkpoint is None:
        detail = "; ".join(dict.fromkeys(complaints + more)) or "there is none"
        raise CheckpointError(f"checkpoints {folder}: no usable checkpoint ({detail}); run `shoal train` first")
    for complaint in dict.fromkeys(complaints + more):
        warn(f"{complaint}; {checkpoint.path.name} is used instead")
    return checkpoint


def retire(
    folder: Path, keep: int, warn: Callable[[str], None], is_pinned: Callable[[Path], bool] = lambda path: False
) -> list[Path]:
    """Delete all checkpoints but the newest `keep`, the best and pinned ones, and return the deleted ones.

    A checkpoint that cannot be deleted does not end the training: `warn` gets a message, and the next call tries again. Call this
    only while no attempt is being written.
    """
    best = read_best(folder)
    named_best = {name_of(best["step"])} if best is not None else set()
    retired = []
    for path in [path for path in committed(folder)[keep:] if path.name not in named_best and not is_pinned(path)]:
        # Hide it first, by an atomic rename, so that no reader sees half a checkpoint. An object goes without its manifest.
        try:
            if isinstance(path, ObjectPath):
                (path / "manifest.json").unlink()
            else:
                path.rename(_hidden(folder, path.name))
            retired.append(path)
        except OSError as error:
            warn(f"checkpoint {path} is no longer needed and could not be deleted ({error}); it will be tried again")
    for hidden in _uncommitted(folder):
        try:
            remove_tree(hidden)
        except OSError as error:
            warn(f"{hidden}, part of a retired checkpoint, could not be deleted ({error}); it will be tried again")
    return retired


def remove_attempts(folder: Path) -> None:
    """Delete attempts that a dead process left behind. Call this only while no other process writes to the folder."""
    for path in _uncommitted(folder):
        remove_tree(path, ignore_errors=True)
    for path in committed(folder) if isinstance(folder, ObjectPath) else ():
        with suppress(CheckpointError):  # the files of a manifest that cannot be read stay, for people to look at
            _remove_other_attempts(path, StoredCheckpoint(path, read(path)).data.name)


def _uncommitted(folder: Path) -> list[Path]:
    """Return folders of attempts, and of retired checkpoints, that are not deleted yet."""
    if not isinstance(folder, ObjectPath):
        return list(folder.glob(".step_*"))
    done = {path.name for path in committed(folder)}
    return [path for path in folder.glob("step_*") if path.name not in done]
