"""Ownership of a dataset folder: its inputs, whether it may be written, and its work area.

Work happens in `.work-*` inside the folder (trainer.output_folder). An interrupted attempt leaves its work folder. The next
attempt at the same dataset continues it; any other attempt removes it. Without a work folder nothing is deleted: parts may
even be the logs.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sharding.config import IdsConfig
from trainer.config.split import SplitConfig
from trainer.data.dataset.manifest import FORMAT_VERSION, Manifest, read_manifest, verify_dataset, write_manifest
from trainer.data.logs.columns import SourceName
from trainer.data.logs.config import LogsConfig, TextConfig
from trainer.data.logs.files import InputFile
from trainer.errors import UserError
from trainer.output_folder import OwnNames, is_finished, remove_from, writing
from trainer.settings import changed_settings, flatten
from trainer.storage.files import digest_of

_OWN = OwnNames(
    "manifest.json",
    ".work-",
    re.compile(
        r"(part|cuts)-\d{3}-\d{5}\.parquet|(vocabulary|sketch)-\d{3}-\w+\.parquet|(rejected|items)-\d{3}\.parquet"
        r"|card\.(html|json)|\.(manifest\.json|card\.html|card\.json)\..*\.tmp"
    ),
)
_REMEDY = "choose another run.dataset or run.dir"
# Settings of logs that change no dataset: locations of files, and limits at which prepare stops.
_NO_CONTENT = {
    "path": True,
    "format": True,
    "max_rejected_fraction": True,
    "max_unreadable_files": True,
    "history": {"path", "format"},
    "items": {"path", "format"},
    "users": {"path", "format"},
}
# Settings of logs that earlier versions did not have, with the defaults under which they change nothing. At these defaults they are
# left out, so that datasets of earlier versions keep their fingerprints.
_LATER_SETTINGS: dict[str, tuple[Any, ...]] = {
    "text": (None, TextConfig().model_dump(mode="json")),
    "user_type": ("auto",),
    "item_type": ("auto",),
    "type": ("auto",),
    "time_format": (None,),
    "null_values": ([],),
}

Files = Mapping[SourceName, tuple[InputFile, ...]]


@dataclass(frozen=True)
class DatasetRequest:
    """The dataset that a config asks for."""

    # Settings of the logs.
    logs: LogsConfig
    # Settings of the split.
    split: SplitConfig
    # For each table that features name, and for "item": how its values become rows.
    ids: Mapping[str, IdsConfig]
    # Files of each source.
    files: Files

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that decide the content of a dataset, besides files and split."""
        tables = {name: {"ids": config.model_dump(mode="json")} for name, config in sorted(self.ids.items())}
        logs = self.logs.model_dump(mode="json", exclude=_NO_CONTENT)  # type: ignore[arg-type]
        return {"logs": _as_earlier_versions(logs), "tables": tables}

    @property
    def described_files(self) -> list[dict[str, Any]]:
        """Entries of all files, as the manifest stores them."""
        return [
            {"source": source, "path": file.name, "bytes": file.num_bytes, "mtime_ns": file.mtime_ns}
            for source, files in self.files.items()
            for file in files
        ]

    @property
    def split_settings(self) -> dict[str, Any]:
        """Settings of the split, as the manifest stores them."""
        return self.split.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """Digest that is equal for equal inputs and settings."""
        formats = [file.format for files in self.files.values() for file in files]
        return digest_of([self.settings, self.described_files, formats, self.split_settings, FORMAT_VERSION])


def _as_earlier_versions(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of logs without those that earlier versions did not have, if they are at their defaults."""
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _LATER_SETTINGS and value in _LATER_SETTINGS[name]:
            continue
        kept[name] = _as_earlier_versions(value) if isinstance(value, dict) else value
    if kept.get("kind") == "timestamp" and kept.get("format", "") is None:
        del kept["format"]
    return kept


@dataclass(frozen=True)
class Existing:
    """A verified dataset."""

    # Its manifest.
    manifest: Manifest
    # Files that must be appended, by source; None if the dataset is the one asked for.
    new_files: Files | None


def find_dataset(folder: Path, request: DatasetRequest) -> Existing | None:
    """Return the dataset of this folder if the request asks for it, or for it with more files; None if the folder is free.

    Raises:
        UserError: if the folder holds another dataset, a damaged one, or anything else.
    """
    if not is_finished(folder, _OWN, f"dataset {folder}", _REMEDY):
        return None
    stored = read_manifest(folder)
    if stored.fingerprint == request.fingerprint:
        verify_dataset(folder, stored)
        return Existing(stored, None)
    manifest = recognize_files(stored, request)
    differences = list(_differences(manifest, request))
    new_files = _new_files(manifest, request)
    if not new_files and not differences:
        differences = list(_differences_without_new_files(manifest, request))
        if not differences:  # files were moved, or left-out files are missing now, which changes nothing
            verify_dataset(folder, manifest)
            if manifest is not stored:
                manifest = replace(manifest, fingerprint=request.fingerprint)
                _remember(folder, manifest)
            return Existing(manifest, None)
    if differences:
        raise UserError(
            f"dataset {folder}: the folder holds another dataset: {'; '.join(differences)}. "
            "Choose another run.dataset or run.dir, or delete the folder to prepare it again; "
            "`shoal train` and `shoal evaluate` continue with this dataset and do not read the logs"
        )
    verify_dataset(folder, manifest)
    return Existing(manifest, new_files)


def recognize_files(manifest: Manifest, request: DatasetRequest) -> Manifest:
    """Return the manifest with the current path and modification time of each file with unchanged content.

    A file is read only if the manifest has a file of the same size with another path or time, and with a content hash,
    which manifests of earlier versions lack. A file that still exists with other content was changed, not moved.
    """
    requested = {_key_of(entry) for entry in request.described_files}
    entries = list(manifest.source["files"])
    open_places = {k for k, entry in enumerate(entries) if _key_of(entry) not in requested and "sha256" in entry}
    known = {_key_of(entry) for entry in entries}
    names = {(source, file.name) for source, files in request.files.items() for file in files}
    recognized: dict[int, dict[str, Any]] = {}
    for source, files in request.files.items():
        for file in files:
            place = (source, file.name, file.num_bytes, file.mtime_ns)
            same_size = [
                k
                for k in open_places
                if (entries[k]["source"], entries[k]["bytes"]) == (source, file.num_bytes)
                and (entries[k]["path"] == file.name or (source, entries[k]["path"]) not in names)
            ]
            if place in known or not same_size:
                continue
            content = file.content_hash()
            # Names distinguish copies of one file.
            same_size.sort(key=lambda k: (entries[k]["path"] != file.name, entries[k]["path"]))
            match = next((k for k in same_size if entries[k]["sha256"] == content), None)
            if match is not None:
                open_places.discard(match)
                recognized[match] = entries[match] | {"path": file.name, "mtime_ns": file.mtime_ns}
    if not recognized:
        return manifest
    renewed = [recognized.get(k, entry) for k, entry in enumerate(entries)]
    return replace(manifest, source=manifest.source | {"files": renewed})


def _key_of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["source"], entry["path"], entry["bytes"], entry["mtime_ns"]


def _remember(folder: Path, manifest: Manifest) -> None:
    """Update paths and modification times in the manifest, so that files need not be read again. Failures are ignored."""
    with suppress(UserError, OSError), _held(folder):
        write_manifest(folder, manifest)


@contextmanager
def attempt(folder: Path, key: str) -> Iterator[Path]:
    """Yield a work folder inside the dataset folder, which no other attempt may write at the same time.

    The work folder of an interrupted attempt with the same key is reused. After an error of the user's, and at the end,
    nothing is left of it.

    Args:
        folder: the dataset folder.
        key: identifies the dataset that is made.

    Raises:
        UserError: if the folder cannot be written or another command is writing it.
    """
    with _held(folder):
        work = folder / f"{_OWN.work}{key[:16]}"
        _clean(folder, keep=work.name)
        work.mkdir(exist_ok=True)
        try:
            yield work
        except (UserError, OSError):
            _clean(folder)
            raise
        else:
            _clean(folder)


def remove_leftovers(folder: Path) -> None:
    """Clean up after an attempt that was killed between commit and clean-up. Failures are ignored."""
    if _OWN.leftovers(path.name for path in folder.iterdir()):
        with suppress(UserError, OSError), _held(folder):
            _clean(folder)


def _held(folder: Path) -> AbstractContextManager[None]:
    space = "prepare needs about 50 bytes per event there, most of it only while it runs. "
    return writing(folder, f"dataset {folder}", "preparing it", space, _REMEDY)


def _clean(folder: Path, keep: str = "") -> None:
    """Remove leftovers of attempts, except the work folder `keep` and files of the dataset or of that attempt."""
    names = [path.name for path in folder.iterdir()]
    committed = {file.path for file in read_manifest(folder).files} if _OWN.record in names else set()
    leftovers = _OWN.leftovers(names)
    if keep in names:
        leftovers = [name for name in leftovers if name.startswith(_OWN.work) and name != keep]
    # The manifest does not list the card and the rejected rows, but they belong to the dataset.
    kept = committed | (_unlisted_files(read_manifest(folder)) if committed else set())
    remove_from(folder, set(leftovers) - kept, last=_OWN.work)


def _unlisted_files(manifest: Manifest) -> set[str]:
    return {
        "card.html",
        "card.json",
        *(f"rejected-{generation:03d}.parquet" for generation in range(manifest.generation + 1)),
    }


def _new_files(manifest: Manifest, request: DatasetRequest) -> dict[SourceName, tuple[InputFile, ...]]:
    """Return files of events that the dataset does not contain, including a left-out file that has been corrected.

    Items and users are no events: they are read again each time.
    """
    known = {(f["source"], f["path"]): f for f in manifest.source["files"]}

    def is_new(source: SourceName, file: InputFile) -> bool:
        entry = known.get((source, file.name))
        changed = entry is not None and (entry["bytes"], entry["mtime_ns"]) != (file.num_bytes, file.mtime_ns)
        return entry is None or ("unreadable" in entry and changed)

    new = {
        source: tuple(file for file in files if is_new(source, file))
        for source, files in request.files.items()
        if source in ("logs", "history")
    }
    return {source: files for source, files in new.items() if files}


def _differences(manifest: Manifest, request: DatasetRequest) -> Iterator[str]:
    """Yield reasons against appending: other settings, or files of events that are missing or changed."""
    yield from changed_settings(flatten(manifest.source["settings"]), flatten(request.settings))
    old, new = (
        {f["path"]: f for f in files if f["source"] in ("logs", "history") and "unreadable" not in f}
        for files in (manifest.source["files"], request.described_files)
    )
    missing = sorted(old.keys() - new.keys())
    if missing:
        yield f"it was made from {_some(sorted(old))}, and logs.path now leads to {_some(sorted(new))}"
    changed = [p for p in old.keys() & new.keys() if any(old[p][key] != new[p][key] for key in ("bytes", "mtime_ns"))]
    if changed:
        yield f"it was made before {_some(sorted(changed))} changed"


def _differences_without_new_files(manifest: Manifest, request: DatasetRequest) -> Iterator[str]:
    """Yield differences that are accepted only together with new files of events."""
    if manifest.split != request.split_settings:
        yield f"the split was {manifest.split}, now {request.split_settings}, and no file of events is new"
    keys = ("source", "path", "bytes", "mtime_ns")
    old, new = (
        sorted([f[key] for key in keys] for f in files if f["source"] in ("items", "users"))
        for files in (manifest.source["files"], request.described_files)
    )
    if old != new:
        yield "the files of items or users have changed, and no file of events is new"


def _some(paths: list[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
