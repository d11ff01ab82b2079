"""The sequence dataset: what prepare writes and everything else reads.

    dataset/
      manifest.json                    this module's Manifest; written last, by atomic rename: without it there is no dataset
      part-00000.parquet ...           one row per user, hash-partitioned by user
      vocabulary-item.parquet          value (as in the logs), num_events, num_train_events; row k is id k + 1
      rejected.parquet                 quarantined rows with file, row and reason (absent if none)

A row holds the user's whole history once, and two cuts tell the splits apart, so no event is stored twice:

    user: as in the logs | item: list<int32> | time: list<int64> | train_end: int32 | validation_end: int32
    [0, train_end) trains, [train_end, validation_end) are the validation targets, [validation_end, end) the test targets

Item id 0 is the declared row of unknown items (those that the training period did not have, under a global time split).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.storage import digest_of, hash_file, write_json_atomically

FORMAT_VERSION = 1
UNKNOWN_ID = 0


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group of a part: its users and their events (all splits)."""

    num_rows: int
    num_events: int


@dataclass(frozen=True)
class Part:
    """One Parquet file of the dataset; `path` is relative to the dataset folder."""

    path: str
    num_bytes: int
    sha256: str
    row_groups: tuple[RowGroup, ...]


@dataclass(frozen=True)
class Counts:
    """What prepare saw and did. Every row read is kept or counted under a reason in `rejected`."""

    rows_read: int
    rows_kept: int
    rejected: dict[str, int]
    num_users: int
    num_items: int
    train_events: int
    validation_targets: int
    test_targets: int
    users_without_targets: int  # their training part has a single event or none, so nothing can be learned from it
    users_not_evaluated: int  # under leave_one_out: fewer events than split.min_events
    unknown_items: int  # held-out events whose item the training period did not have
    tied_times: int  # events with the same user and time as the event before; the order of the log decided


@dataclass(frozen=True)
class Manifest:
    """The contract of a dataset. `fingerprint` identifies the inputs and settings it was made from."""

    fingerprint: str
    source: dict[str, Any]  # files (path, bytes, rows), columns and their types
    split: dict[str, Any]
    counts: Counts
    vocabulary: dict[str, Any]  # {"path", "sha256", "num_rows"} of the item vocabulary
    parts: tuple[Part, ...]
    format_version: int = FORMAT_VERSION

    @property
    def num_rows(self) -> int:
        return sum(group.num_rows for part in self.parts for group in part.row_groups)

    @property
    def num_item_rows(self) -> int:
        """Rows of the item table: every known item and the row of the unknown."""
        return self.counts.num_items + 1

    @property
    def digest(self) -> str:
        """Hash of the content: parts and vocabulary, wherever they came from. Ranks and resumed runs must agree on it."""
        content = {
            "parts": [[part.path, part.sha256] for part in self.parts],
            "vocabulary": self.vocabulary["sha256"],
            "version": self.format_version,
        }
        return digest_of(content)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit the dataset: everything else must be on disk before."""
    write_json_atomically(folder / "manifest.json", asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest. Raises UserError if there is no dataset, or one of another format version."""
    path = folder / "manifest.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"dataset {folder}: no manifest.json, so there is no finished dataset; run `shoal prepare`"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"dataset {path}: cannot be read ({error}); delete the folder and run `shoal prepare`"
        ) from None
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"dataset {path}: format version {values.get('format_version')}, this shoal reads {FORMAT_VERSION}; "
            "delete the folder and run `shoal prepare` again"
        )
    parts = tuple(
        Part(p["path"], p["num_bytes"], p["sha256"], tuple(RowGroup(**g) for g in p["row_groups"]))
        for p in values["parts"]
    )
    return Manifest(
        fingerprint=values["fingerprint"],
        source=values["source"],
        split=values["split"],
        counts=Counts(**values["counts"]),
        vocabulary=values["vocabulary"],
        parts=parts,
    )


def verify_dataset(folder: Path, manifest: Manifest) -> None:
    """Check that every file is there, complete and unchanged. Raises UserError naming the file."""
    files = [(part.path, part.sha256) for part in manifest.parts]
    files.append((manifest.vocabulary["path"], manifest.vocabulary["sha256"]))
    for name, expected in files:
        try:
            actual = hash_file(folder / name)
        except FileNotFoundError:
            raise UserError(
                f"dataset {folder / name}: the file is missing; delete the folder and run `shoal prepare`"
            ) from None
        if actual != expected:
            raise UserError(
                f"dataset {folder / name}: the content is not what the manifest says (sha256 {actual[:12]}, "
                f"expected {expected[:12]}): rewritten or damaged; delete the folder and run `shoal prepare`"
            )
