"""The format of the sequence dataset: the files that prepare writes and every later stage reads.

    dataset/
      manifest.json                    the Manifest of this module; written last, by atomic rename: without it there is no dataset
      part-000-00000.parquet ...       generation and partition: one row per user, hash-partitioned by user
      cuts-001-00000.parquet ...       after an append: the current cuts of every row of a partition
      items-000.parquet                features of items; row k is item number k (absent without features)
      vocabulary-000-item.parquet ...  generation and table: value (as in the logs), num_events; row k is number k + 1
      sketch-000-TABLE.parquet         hashes of values of a table without a vocabulary, for their number
      rejected-000.parquet             quarantined rows with file, row and reason (absent without such rows)
      card.html, card.json             the data card, for people and for programs

A row holds the whole history of a user once. Two cuts separate the splits, so no event is stored twice:

    user: as in the logs | item: list<int32> | time: list<int64> | train_end: int32 | validation_end: int32
    [0, train_end) trains, [train_end, validation_end) are the validation targets, [validation_end, end) the test targets
    event.NAME: lists parallel to item and time, a value per event | user.NAME: a value per user

Under a split by users (user_holdout) held-out users have train_end = 0. Only the last events of a held-out user are targets,
the others are history: [0, validation_end) of a test user, and all events but the last ones of a validation user.

A dataset for ranking has impressions as well, and its cuts count these instead of events:

    impression.item: list<int32> | impression.time: list<int64> | impression.history_end: list<int32>, the number of events of
    the history before the impression | label.NAME: list<float> | impression.NAME: lists, the features of events

**Numbers.** `item` holds numbers of the catalogue. Every item of logs and catalogue has a number that never changes.
The model uses ids: 1 and up for the items that the training part knows, 0 for all others. The column `id` of the
vocabulary maps numbers to ids. If every number equals its id (`ids_are_numbers`), the mapping is skipped.

**Generations.** Later days are appended as parts of the next generation. These hold the new events of known users
(`row`: the row of the partition that they continue) and the rows of new users. Existing files are never rewritten. A
row group of a part belongs to a row group of the dataset; its rows never change, they only grow longer.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trainer.errors import UserError
from trainer.storage.files import digest_of, hash_file, refusal_cause, write_json_atomically

FORMAT_VERSION = 2
UNKNOWN_ID = 0
USED_KINDS = ("categorical", "categorical_list", "bucketized", "numeric", "vector")


@dataclass(frozen=True)
class StoredFile:
    """A file of the dataset."""

    # Path relative to the dataset folder.
    path: str
    # Size in bytes.
    num_bytes: int
    # Hash of the content.
    sha256: str


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group of a part."""

    # Its rows.
    num_rows: int
    # Its events, of all splits.
    num_events: int
    # Number of the row group of the dataset that it belongs to.
    group: int


@dataclass(frozen=True)
class Part(StoredFile):
    """One Parquet file of rows."""

    # Number of its partition.
    partition: int
    # Number of the append that wrote it; 0 is the first preparation.
    generation: int
    # Its row groups.
    row_groups: tuple[RowGroup, ...]


@dataclass(frozen=True)
class Cuts(StoredFile):
    """train_end and validation_end of every row of a partition, with one Parquet row group per row group of the dataset."""

    partition: int


@dataclass(frozen=True)
class VocabularyFile(StoredFile):
    """The values of a table's rows, or of the catalogue."""

    num_rows: int


@dataclass(frozen=True)
class Feature:
    """A feature as it is stored."""

    # Owner of the feature.
    owner: Literal["event", "item", "user"]
    # Its column without the owner's prefix.
    name: str
    # How it is stored: "categorical" (int32, or int64 hashes for a dynamic table), "categorical_list" (lists of them),
    # "numeric" (float32), "bucketized" (float32, ids after reading), "timestamp" (int64), "vector" (lists of float32 of
    # width dim).
    kind: str
    # Table of its ids, if it has ids.
    table: str | None = None
    # Rows of that table.
    num_rows: int | None = None
    # Width of a vector.
    dim: int | None = None
    # Fit on the training part: {"transform", "mean", "std"} or {"transform", "bounds"}.
    fitted: dict[str, Any] | None = None
    # Nulls in all splits (in lists: entries too).
    num_missing: int = 0
    # Values in all splits that the vocabulary does not contain.
    num_unknown: int = 0
    # Entries in all splits beyond max_values.
    num_cut: int = 0
    # Collisions of a hashed table (trainer/data/prepare/vocabularies.py).
    collisions: dict[str, Any] | None = None

    @property
    def column(self) -> str:
        """Name of its column."""
        return f"{self.owner}.{self.name}"


@dataclass(frozen=True)
class Counts:
    """Counts of rows, users, items and events. Every row of logs and history is kept, or counted under a reason in `rejected`.

    In a dataset for ranking, targets are impressions, and train_events are training impressions.
    """

    # Rows of logs and history that were read, in all generations.
    rows_read: int
    # Rows that are in the dataset.
    rows_kept: int
    # Rejected rows by reason.
    rejected: dict[str, int]
    # Users with a row.
    num_users: int
    # Items that the model knows.
    num_items: int
    # Events of the training parts.
    train_events: int
    # Events held out for validation.
    validation_targets: int
    # Events held out for the test.
    test_targets: int
    # Users with at most one training event (ranking: none), from whom nothing can be learned.
    users_without_targets: int
    # Under leave_one_out and last_n: users with fewer events than split.min_events. Under user_holdout: held-out users
    # without an event before their targets.
    users_not_evaluated: int
    # Held-out events of items that the training period does not have.
    unknown_items: int
    # Events with the user and time of the previous event; the order of the log decided.
    tied_times: int
    # Training events of items below tables.item.ids.min_count, which share the row of unknown items.
    rare_items: int = 0
    # Ranking: events of histories, of all splits.
    history_events: int = 0
    # Rejected rows of the newest files of items and users, by reason.
    catalogue_rejected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The contract of a dataset."""

    # Identifies the inputs and settings of the dataset.
    fingerprint: str
    # Settings, files by generation (path, bytes, modification time, sha256, rows), columns and their types.
    source: dict[str, Any]
    # Settings of the split.
    split: dict[str, Any]
    # Counts of rows, users, items and events.
    counts: Counts
    # Vocabulary of each table that has one; that of "item" lists the catalogue.
    vocabularies: dict[str, VocabularyFile]
    # Parts of all generations, in their order.
    parts: tuple[Part, ...]
    # Task that the dataset serves: "next_item" or "ranking".
    task: str = "next_item"
    # Ranking: names, positives by split, outcomes, and the sampling rate of negatives.
    labels: dict[str, Any] = field(default_factory=dict)
    # Features in the order of the config.
    features: tuple[Feature, ...] = ()
    # Features of the items.
    items: StoredFile | None = None
    # By table without a vocabulary: hashes of its values (trainer/data/dataset/hashing.py: Distinct).
    sketches: dict[str, StoredFile] = field(default_factory=dict)
    # Current cuts of partitions with several generations.
    cuts: tuple[Cuts, ...] = ()
    # Whether every number of the catalogue equals its id.
    ids_are_numbers: bool = True
    # Statistics for the data card.
    profile: dict[str, Any] = field(default_factory=dict)
    # Digests of this dataset before each append, the oldest first. For a derived dataset, of the one it is derived from.
    grown_from: tuple[str, ...] = ()
    # Of a derived dataset (trainer/data/prepare/derived.py): the digest of the other one, and counts of the new logs.
    derived: dict[str, Any] = field(default_factory=dict)
    # Version of this format.
    format_version: int = FORMAT_VERSION

    @property
    def generation(self) -> int:
        """Newest generation (0 is the first), even if all its rows were rejected."""
        files = (file["generation"] for file in self.source.get("files", ()))
        return max((*(part.generation for part in self.parts), *files), default=0)

    @property
    def has_impressions(self) -> bool:
        """True for the task `ranking`: rows hold impressions with labels, besides histories."""
        return self.task == "ranking"

    @property
    def num_partitions(self) -> int:
        """Number of partitions."""
        return 1 + max((part.partition for part in self.parts), default=-1)

    @cached_property
    def group_rows(self) -> tuple[int, ...]:
        """Rows of every row group of the dataset. The oldest piece of a group has all of its rows."""
        rows: dict[int, int] = {}
        for part in self.parts:  # in the order of the generations
            for piece in part.row_groups:
                rows.setdefault(piece.group, piece.num_rows)
        return tuple(rows[group] for group in range(len(rows)))

    @property
    def num_rows(self) -> int:
        """Number of rows, which is that of the users."""
        return sum(self.group_rows)

    @property
    def num_item_rows(self) -> int:
        """Number of item ids: the known items, and one id for unknown items."""
        return self.counts.num_items + 1

    @property
    def vocabulary(self) -> VocabularyFile:
        """Vocabulary of the catalogue."""
        return self.vocabularies["item"]

    @property
    def files(self) -> Iterator[StoredFile]:
        """All files that the manifest lists."""
        yield from self.parts
        yield from self.cuts
        yield from self.vocabularies.values()
        yield from self.sketches.values()
        if self.items is not None:
            yield self.items

    @property
    def digest(self) -> str:
        """Hash of the content: all files, independent of their origin. Ranks and resumed runs must agree on it."""
        fitted = [[feature.column, feature.fitted] for feature in self.features]
        return digest_of(
            {
                "files": [[file.path, file.sha256] for file in self.files],
                "fitted": fitted,
                "version": self.format_version,
            }
        )


def used_features(manifest: Manifest) -> tuple[Feature, ...]:
    """Return the item features that a model adds up. A timestamp has no meaning without the time of an event."""
    return tuple(f for f in manifest.features if f.owner == "item" and f.kind in USED_KINDS)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit the dataset. All other files must already be on disk."""
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
        if (cause := refusal_cause(error)) is not None:
            raise UserError(f"dataset {path}: cannot be read: {cause}") from None
        raise UserError(
            f"dataset {path}: cannot be read ({error}); delete the folder and run `shoal prepare`"
        ) from None
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"dataset {path}: format version {values.get('format_version')}, and this version of shoal reads {FORMAT_VERSION}; "
            "delete the folder and run `shoal prepare` again"
        )
    return Manifest(
        **values
        | {
            "counts": Counts(**values["counts"]),
            "vocabularies": {name: VocabularyFile(**file) for name, file in values["vocabularies"].items()},
            "parts": tuple(
                Part(**part | {"row_groups": tuple(RowGroup(**g) for g in part["row_groups"])})
                for part in values["parts"]
            ),
            "features": tuple(Feature(**feature) for feature in values["features"]),
            "items": StoredFile(**values["items"]) if values["items"] else None,
            "sketches": {name: StoredFile(**file) for name, file in values["sketches"].items()},
            "cuts": tuple(Cuts(**cuts) for cuts in values["cuts"]),
            "grown_from": tuple(values.get("grown_from", ())),
        }
    )


def verify_dataset(folder: Path, manifest: Manifest) -> None:
    """Check that every file is present, complete and unchanged. Raises UserError naming the file."""
    for file in manifest.files:
        try:
            actual = hash_file(folder / file.path)
        except FileNotFoundError:
            raise UserError(
                f"dataset {folder / file.path}: the file is missing; delete the folder and run `shoal prepare`"
            ) from None
        if actual != file.sha256:
            raise UserError(
                f"dataset {folder / file.path}: the content is not what the manifest says (sha256 {actual[:12]}, "
                f"expected {file.sha256[:12]}): rewritten or damaged; delete the folder and run `shoal prepare`"
            )
