"""Datasets that are derived from another one, the base: new logs, encoded with the vocabularies and fits of the base.

A derived dataset is an append to the base in a folder of its own. The base is only read, and its files are linked, not
copied. Items that the base does not know get numbers after the others, with the id of unknown items, and are counted.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.dataset.folder import DatasetRequest
from trainer.data.dataset.manifest import Counts, Manifest, read_manifest, verify_dataset
from trainer.data.dataset.splits import NewEvents
from trainer.data.prepare.rejections import EVENTS, count_rejected
from trainer.data.prepare.totals import Totals
from trainer.errors import UserError
from trainer.settings import changed_settings, flatten
from trainer.storage.files import naming, sync_folder
from trainer.storage.objects.paths import ObjectPath, copy_file

KIND = "new_logs"
# Settings of logs that say how values are read. Files of another period may have other columns and formats.
_READING = {
    *("text", "user", "item", "time", "user_type", "item_type", "time_format", "null_values", "duplicates"),
    *("negative_ids", "earliest_time", "latest_time", "max_events_per_user", "outcomes", "negative_sampling_rate"),
}
_READING_OF_FEATURES = {"column", "type", "separator", "format"}


@dataclass(frozen=True)
class Derivation:
    """Use of the events of the base and of the new logs in a derived dataset."""

    # Whether the events of the base are part of the histories, before the new events.
    history: bool = True
    # Whether the new events are targets of the test split. If not, they are history.
    targets: bool = True

    @property
    def cuts(self) -> NewEvents:
        """Bounds of the splits."""
        return NewEvents(self.targets)

    def settings(self, base: Manifest) -> dict[str, Any]:
        """Return what the manifest of the derived dataset holds as its split."""
        return {"kind": KIND, "history": self.history, "targets": self.targets, "base": base.digest}

    def start_from(self, base: Manifest) -> Manifest:
        """Return the manifest that the new logs are appended to: the base, or the base without its rows."""
        if self.history:
            return base
        counts = Counts(0, 0, {}, 0, base.counts.num_items, 0, 0, 0, 0, 0, 0, 0)
        features = [replace(f, num_missing=0, num_unknown=0, num_cut=0) for f in base.features]
        source = {
            **base.source,
            "files": [],
            "observed": {},
            "time": {**base.source["time"], "first": None, "last": None},
        }
        return replace(base, counts=counts, parts=(), cuts=(), features=tuple(features), source=source)


def find_derived(folder: Path, request: DatasetRequest) -> Manifest | None:
    """Return the derived dataset of this folder if it is the requested one, verified; None if it must be made.

    Raises:
        UserError: if the folder holds anything that is no derived dataset.
    """
    if not (folder / "manifest.json").exists():
        return None
    manifest = read_manifest(folder)
    if not manifest.derived:
        raise UserError(f"dataset {folder}: holds a dataset that is not derived from another; choose another folder")
    if manifest.fingerprint != request.fingerprint:
        return None
    verify_dataset(folder, manifest)
    return manifest


def remove_derived(folder: Path) -> None:
    """Remove a derived dataset, the manifest first. The base keeps its files, to which this folder only has links."""
    if not (folder / "manifest.json").exists():
        return
    files = [file.path for file in read_manifest(folder).files]
    (folder / "manifest.json").unlink()
    for name in (*files, *(path.name for path in folder.glob("rejected-*.parquet")), "card.html", "card.json"):
        (folder / name).unlink(missing_ok=True)


def link_files(base: Path, folder: Path, manifest: Manifest) -> None:
    """Link the files of a manifest into a folder on the same filesystem, or copy them into one on another."""
    for file in manifest.files:
        target = folder / file.path
        if target.exists() and target.stat().st_size == file.num_bytes:
            continue
        if isinstance(target, ObjectPath):
            source = base / file.path
            if isinstance(source, ObjectPath):
                source.copy_to(target)
            else:
                copy_file(source, target)
            continue
        temporary = folder / f".{file.path}.{os.getpid()}.tmp"
        with naming(target):
            try:
                try:
                    os.link(base / file.path, temporary)
                except OSError:
                    copy_file(base / file.path, temporary)
                temporary.replace(target)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
    sync_folder(folder)


def check_encoders(base: Manifest, request: DatasetRequest, folder: Path) -> None:
    """Check that new logs have the features, labels and tables of a base. Raises UserError with every difference.

    Args:
        base: manifest of the base.
        request: the derived dataset.
        folder: of the base, for the message.
    """
    before, now = (encoder_settings(settings) for settings in (base.source.get("settings", {}), request.settings))
    changed = changed_settings(before, now)
    if changed:
        lines = "\n  ".join(changed)
        raise UserError(
            f"logs: cannot be encoded as those of dataset {folder}, because these settings differ:\n  {lines}\n"
            "Set them back. Columns, formats and limits of the logs may differ"
        )


def encoder_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings of a dataset that decide how values become ids and numbers."""
    kept = {}
    for name, value in flatten(dict(settings)).items():
        parts = name.split(".")
        if parts[0] == "logs" and "features" not in parts and _READING & set(parts[1:]):
            continue
        if "features" in parts and parts[-1] in _READING_OF_FEATURES:
            continue
        kept[name] = value
    return kept


def derived_counts(totals: Totals) -> dict[str, Any]:
    """Return what the manifest of a derived dataset says of the new logs.

    Returns:
        base: digest of the base.
        rows: rows that were read.
        rejected: number of rejected rows by reason.
        events: events (ranking: impressions) that were kept.
        unknown_items: items among these that the base does not know.
        unknown_item_events: events of such items.
        new_users: users that the base does not have; None if its events are not part of the histories.
        first, last: time of the first and the last event; None without events.
    """
    job = totals.job
    assert job.existing is not None
    assert job.request.derived is not None
    unknown = np.where(totals.item_ids == 0, totals.new_events_of_items, 0)
    chunks = job.inputs.chunks
    first, last = totals.values.times or (None, None)
    has_rows = job.request.derived["history"]
    return {
        "base": job.request.derived["base"],
        "rows": sum(result.num_rows for number, result in totals.read.items() if chunks[number].source in EVENTS),
        "rejected": dict(sorted(count_rejected(job, EVENTS, totals.read, totals.grouped).items())),
        "events": int(totals.new_events_of_items.sum()),
        "unknown_items": int(np.count_nonzero(unknown)),
        "unknown_item_events": int(unknown.sum()),
        "new_users": totals.counts.num_users - job.existing.manifest.num_rows if has_rows else None,
        "first": first,
        "last": last,
    }
