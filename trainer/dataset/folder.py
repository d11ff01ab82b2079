"""Whose a dataset folder is: what it was made from, whether it may be written, and how an attempt leaves no trace.

An attempt works in `.spill-*` inside the folder, so moving its results out is a rename. That folder is removed last:
where one is found, the parts beside it without a manifest come from an attempt that was killed, and only then are they
deleted.
"""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.config import LogsConfig, SplitConfig
from trainer.dataset.manifest import FORMAT_VERSION, Manifest, read_manifest, verify_dataset
from trainer.errors import UserError
from trainer.logs.files import InputFile
from trainer.storage import digest_of

_RESULT = re.compile(r"part-\d{5}\.parquet|vocabulary-item\.parquet|rejected\.parquet|\.manifest\.json\..*\.tmp")
_SPILL = ".spill-"


def describe_source(logs: LogsConfig, files: Sequence[InputFile]) -> dict[str, Any]:
    """What decides the content of a dataset, besides the split. Part of the manifest and of the fingerprint."""
    return {
        "files": [{"path": file.name, "bytes": file.num_bytes, "mtime_ns": file.mtime_ns} for file in files],
        "columns": {"user": {"name": logs.user}, "item": {"name": logs.item}, "time": {"name": logs.time}},
        "duplicates": logs.duplicates,
    }


def fingerprint(logs: LogsConfig, split: SplitConfig, files: Sequence[InputFile]) -> str:
    """Equal for equal inputs and settings. How many rows may be rejected is not among them: it changes no dataset."""
    formats = [file.format for file in files]
    content = [describe_source(logs, files), formats, split.model_dump(mode="json"), FORMAT_VERSION]
    return digest_of(content)


def find_dataset(folder: Path, logs: LogsConfig, split: SplitConfig, files: Sequence[InputFile]) -> Manifest | None:
    """The verified dataset of these inputs and settings, or None where the folder is free for it.

    Raises UserError if the folder holds another dataset, a damaged one, or anything else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError(f"dataset {folder}: is not a folder; choose another run.dataset or run.dir")
    names = sorted(path.name for path in folder.iterdir())
    if "manifest.json" not in names:
        foreign = sorted(set(names) - set(_leftovers(names)))
        if foreign:
            raise UserError(
                f"dataset {folder}: the folder is in use by something else (it holds {', '.join(foreign[:3])}"
                f"{', ...' if len(foreign) > 3 else ''}); choose another run.dataset or run.dir, or empty the folder"
            )
        return None
    manifest = read_manifest(folder)
    if manifest.fingerprint != fingerprint(logs, split, files):
        raise UserError(
            f"dataset {folder}: the folder holds another dataset: "
            f"{'; '.join(_differences(manifest, logs, split, files))}. "
            "Choose another run.dataset or run.dir, or delete the folder to have it made again"
        )
    verify_dataset(folder, manifest)
    return manifest


@contextmanager
def attempt(folder: Path) -> Iterator[Path]:
    """A fresh folder to work in, inside the dataset folder, which no other attempt may write meanwhile.

    When the block ends without a manifest, however it ends, nothing is left of it. Raises UserError if the folder
    cannot be written or another command is writing it.
    """
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _clean(folder)
            spill = folder / f"{_SPILL}{uuid.uuid4().hex[:8]}"
            spill.mkdir()
            try:
                yield spill
            finally:
                _clean(folder)
                if created and not any(folder.iterdir()):
                    folder.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"dataset {folder}: no space left on the disk; prepare needs about 50 bytes per event there, "
                "most of it only while it runs. Free some, or choose another run.dataset or run.dir"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"dataset {folder}: cannot be written ({error}); choose another run.dataset or run.dir"
            ) from None
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Held by the process, so it ends with the process. Filesystems that cannot lock folders go without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"dataset {folder}: another command is preparing it right now; wait for it to end") from None
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def _clean(folder: Path) -> None:
    names = [path.name for path in folder.iterdir()]
    leftovers = _leftovers(names)
    if "manifest.json" in names:
        leftovers = [name for name in leftovers if name.startswith(_SPILL)]
    for name in sorted(
        leftovers, key=lambda name: name.startswith(_SPILL)
    ):  # spill folders last: they mark the rest as ours
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _leftovers(names: list[str]) -> list[str]:
    """What an attempt of ours left. Without its spill folder, parts may be anybody's, even the logs."""
    if not any(name.startswith(_SPILL) for name in names):
        return []
    return [name for name in names if name.startswith(_SPILL) or _RESULT.fullmatch(name)]


def _differences(manifest: Manifest, logs: LogsConfig, split: SplitConfig, files: Sequence[InputFile]) -> Iterator[str]:
    made, asked = manifest.source, describe_source(logs, files)
    old_files, new_files = ({f["path"]: f for f in source["files"]} for source in (made, asked))
    if old_files.keys() != new_files.keys():
        yield f"it was made from {_some(list(old_files))}, and logs.path now means {_some(list(new_files))}"
    else:
        changed = [p for p in new_files if any(old_files[p][key] != new_files[p][key] for key in ("bytes", "mtime_ns"))]
        if changed:
            yield f"it was made before {_some(changed)} changed"
    for role, column in asked["columns"].items():
        if made["columns"][role]["name"] != column["name"]:
            yield f"logs.{role} was {made['columns'][role]['name']!r}, now {column['name']!r}"
    if made["duplicates"] != asked["duplicates"]:
        yield f"logs.duplicates was {made['duplicates']!r}, now {asked['duplicates']!r}"
    if manifest.split != split.model_dump(mode="json"):
        yield f"the split was {manifest.split}, now {split.model_dump(mode='json')}"


def _some(paths: list[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
