"""The sequence dataset: what prepare writes and everything else reads.

    dataset/
      manifest.json                    this module's Manifest; written last, by atomic rename: without it there is no dataset
      part-000-00000.parquet ...       generation and partition: one row per user, hash-partitioned by user
      cuts-001-00000.parquet ...       after an append: where the splits of every row of a partition lie now
      items-000.parquet                features of items, row k is item number k (absent if there are none)
      vocabulary-000-item.parquet ...  generation and table: value (as in the logs), num_events; row k is number k + 1
      sketch-000-TABLE.parquet         hashes of values of a table without a vocabulary, to tell how many there are
      rejected-000.parquet             quarantined rows with file, row and reason (absent if none)
      card.html, card.json             what a person, or a program, should know of the dataset

A row holds a user's whole history once, and two cuts tell the splits apart, so no event is stored twice:

    user: as in the logs | item: list<int32> | time: list<int64> | train_end: int32 | validation_end: int32
    [0, train_end) trains, [train_end, validation_end) are the validation targets, [validation_end, end) the test targets
    event.NAME: lists beside item and time, a value per event | user.NAME: a value per user

A dataset for ranking has impressions as well, and its cuts are places among these instead:

    impression.item: list<int32> | impression.time: list<int64> | impression.history_end: list<int32>, of the history's events
    the first so many lie before the impression | label.NAME: list<float> | impression.NAME: lists, the features of events

**Numbers.** `item` holds numbers of the catalogue, in which every item of logs and catalogue has one, for ever. The model knows
ids: 1 and up for the items that the training part knows, 0 for all others. The vocabulary's column `id` takes one to the
other; where every number is its own id (`ids_are_numbers`), nothing needs to be looked up.

**Generations.** Later days are appended as parts of a next generation, which hold the new events of known users (`row`: which
row of the partition they continue) and the rows of new users. Nothing that was written is written again. A row group of a part
belongs to a row group of the dataset, whose rows never change, only grow longer.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trainer.errors import UserError
from trainer.storage.files import digest_of, hash_file, write_json_atomically

FORMAT_VERSION = 2
UNKNOWN_ID = 0
USED_KINDS = ("categorical", "categorical_list", "bucketized", "numeric", "vector")


@dataclass(frozen=True)
class StoredFile:
    """A file of the dataset; `path` is relative to the dataset folder."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group of a part: rows and events (all splits), and the row group of the dataset that they belong to."""

    num_rows: int
    num_events: int
    group: int


@dataclass(frozen=True)
class Part(StoredFile):
    """One Parquet file of rows."""

    partition: int
    generation: int
    row_groups: tuple[RowGroup, ...]


@dataclass(frozen=True)
class Cuts(StoredFile):
    """train_end and validation_end of every row of a partition; one Parquet row group for each of the dataset."""

    partition: int


@dataclass(frozen=True)
class VocabularyFile(StoredFile):
    """The values of a table's rows, or of the catalogue."""

    num_rows: int


@dataclass(frozen=True)
class Feature:
    """A feature as it is stored. name: its column without the owner's prefix; table, num_rows: of its ids, if it has any.

    kind: "categorical" (int32, or int64 hashes for a dynamic table), "categorical_list" (lists of them), "numeric" (float32),
    "bucketized" (float32, ids after reading), "timestamp" (int64), "vector" (lists of float32 of width dim).
    fitted: on the training part: {"transform", "mean", "std"} or {"transform", "bounds"}. Of all splits, num_missing: nulls (of
    lists: entries too); num_unknown: values that the vocabulary does not have; num_cut: entries beyond max_values.
    """

    owner: Literal["event", "item", "user"]
    name: str
    kind: str
    table: str | None = None
    num_rows: int | None = None
    dim: int | None = None
    fitted: dict[str, Any] | None = None
    num_missing: int = 0
    num_unknown: int = 0
    num_cut: int = 0
    collisions: dict[str, Any] | None = None

    @property
    def column(self) -> str:
        return f"{self.owner}.{self.name}"


@dataclass(frozen=True)
class Counts:
    """What prepare saw and did. Every row of logs and history that was read is kept or counted under a reason in `rejected`.

    In a dataset for ranking, targets are impressions, and train_events are training impressions.
    """

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
    rare_items: int = (
        0  # training events of items below tables.item.ids.min_count, which share the row of unknown items
    )
    history_events: int = 0  # ranking: events of histories, of all splits
    catalogue_rejected: dict[str, int] = field(
        default_factory=dict
    )  # of the newest files of items and users, by reason


@dataclass(frozen=True)
class Manifest:
    """The contract of a dataset. `fingerprint` identifies the inputs and settings it was made from."""

    fingerprint: str
    source: dict[
        str, Any
    ]  # settings, files by generation (path, bytes, time of change, sha256, rows), columns and their types
    split: dict[str, Any]
    counts: Counts
    vocabularies: dict[str, VocabularyFile]
    parts: tuple[Part, ...]
    task: str = "next_item"
    labels: dict[str, Any] = field(
        default_factory=dict
    )  # ranking: positives by split, and the sampling rate of negatives
    features: tuple[Feature, ...] = ()
    items: StoredFile | None = None
    sketches: dict[str, StoredFile] = field(default_factory=dict)  # trainer/data/dataset/hashing.py: Distinct, by table
    cuts: tuple[Cuts, ...] = ()
    ids_are_numbers: bool = True
    profile: dict[str, Any] = field(default_factory=dict)  # for the data card
    grown_from: tuple[str, ...] = ()  # digests of this dataset before each append, the oldest first
    format_version: int = FORMAT_VERSION

    @property
    def generation(self) -> int:
        """The newest; 0 is the first. One of which every row was rejected has no part, but its files."""
        files = (file["generation"] for file in self.source.get("files", ()))
        return max((*(part.generation for part in self.parts), *files), default=0)

    @property
    def has_impressions(self) -> bool:
        """True for the task `ranking`: rows hold impressions with labels, besides histories."""
        return self.task == "ranking"

    @property
    def num_partitions(self) -> int:
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
        return sum(self.group_rows)

    @property
    def num_item_rows(self) -> int:
        """Ids of items: every known item and the id of the unknown."""
        return self.counts.num_items + 1

    @property
    def vocabulary(self) -> VocabularyFile:
        """Of the catalogue."""
        return self.vocabularies["item"]

    @property
    def files(self) -> Iterator[StoredFile]:
        yield from self.parts
        yield from self.cuts
        yield from self.vocabularies.values()
        yield from self.sketches.values()
        if self.items is not None:
            yield self.items

    @property
    def digest(self) -> str:
        """Hash of the content: all files, wherever they came from. Ranks and resumed runs must agree on it."""
        fitted = [[feature.column, feature.fitted] for feature in self.features]
        return digest_of(
            {
                "files": [[file.path, file.sha256] for file in self.files],
                "fitted": fitted,
                "version": self.format_version,
            }
        )


def used_features(manifest: Manifest) -> tuple[Feature, ...]:
    """The features of items that a model adds up. A timestamp says nothing without the time of an event."""
    return tuple(f for f in manifest.features if f.owner == "item" and f.kind in USED_KINDS)


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
    """Check that every file is there, complete and unchanged. Raises UserError naming the file."""
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
