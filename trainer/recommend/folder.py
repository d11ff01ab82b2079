"""Folder of recommendations: a Parquet file per worker, and _recommendations.json, which describes them. Imports no torch.

Workers write into a hidden folder next to it, which takes its place when everything is there. So a reader finds the old files, the
new ones, or for a moment none, and never a mixture.
"""

import json
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import UserError
from trainer.storage.files import naming, sync_folder, write_json_atomically
from trainer.storage.objects.paths import ObjectPath, remove_tree
from trainer.storage.objects.spool import copy_tree
from trainer.storage.parquet import parquet_writer

MANIFEST = "_recommendations.json"  # readers of a folder of Parquet files skip names that begin like this
DESCRIPTIONS = (MANIFEST, "_explanations.json")  # of folders of results: each describes all other files
FORMAT_VERSION = 1
ROWS_PER_GROUP = 1 << 18


@dataclass(frozen=True)
class RecommendationsManifest:
    """Content of _recommendations.json."""

    format_version: int
    """Version of this file's form."""
    inputs: str
    """Digest of everything that the recommendations depend on."""
    task: str
    """"next_item" or "ranking"."""
    checkpoint: str
    """Name of the checkpoint."""
    dataset: str
    """Digest of the dataset."""
    options: dict[str, Any]
    """Options of the command."""
    at: int | None
    """Time of the requests in the unit of the dataset; None: of each user, see docs/recommend.md."""
    num_users: int
    """Users with recommendations; with item_to_item the items with similar ones."""
    num_popular: int
    """Users without a history, who got the most popular items, with scores of null."""
    num_unknown_users: int
    """Users of the given file that the dataset does not have."""
    num_unknown_items: int
    """Items of the given file that the model does not know."""
    num_rows: int
    """Rows of all files."""
    seconds: float
    """Duration on the slowest worker, without the start of workers and the loading of the model."""
    users_per_second: float
    """num_users / seconds."""
    num_workers: int
    """Number of workers."""
    files: dict[str, int]
    """Bytes of each file by name."""


class PartWriter:
    """Writer of one worker's file. It holds about ROWS_PER_GROUP rows in memory. Use as a context manager."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"part-{rank:05d}.parquet"
        # An object appears when it is whole, and is written where it stays.
        self._temporary = self.path if isinstance(folder, ObjectPath) else folder / f".part-{rank:05d}.tmp"
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []
        self._num_held = 0

    def __enter__(self) -> "PartWriter":
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, rows: pa.Table) -> None:
        """Add rows. The first call decides the columns."""
        self._held.append(rows)
        self._num_held += rows.num_rows
        if self._num_held >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self._held)
        with naming(self._temporary):
            if self._writer is None:
                self._writer = parquet_writer(
                    self._temporary, table.schema, compression="zstd", write_page_checksum=True
                )
            self._writer.write_table(table)
        self._held, self._num_held = [table.slice(0, 0)], 0

    def __exit__(self, kind: object, error: object, at: object) -> None:
        if error is None and self._held:
            self._flush()
        if self._writer is not None:
            with naming(self._temporary):
                self._writer.close()
        if error is None and self._writer is not None:
            if self._temporary != self.path:
                self._temporary.rename(self.path)
        else:
            self._temporary.unlink(missing_ok=True)


def new_attempt(folder: Path, manifest: str = MANIFEST, content: str = "recommendations") -> Path:
    """Return a fresh hidden folder next to the folder of results, and remove those of earlier attempts.

    Args:
        folder: the folder of results.
        manifest: name of the file that describes them.
        content: the results in words, for messages.

    Raises:
        UserError: the folder holds something else.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / manifest).exists() or not any(folder.iterdir()))):
        raise UserError(f"{folder}: exists, and holds no {content}; choose another folder with --out")
    for old in folder.parent.glob(f".{folder.name}.*.attempt"):
        remove_tree(old, ignore_errors=True)
    attempt = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.attempt"
    attempt.mkdir(parents=True)
    return attempt


def files_of(attempt: Path) -> dict[str, int]:
    """Return the bytes of each finished part by name."""
    return {path.name: path.stat().st_size for path in sorted(attempt.glob("part-*.parquet"))}


def commit(attempt: Path, folder: Path, manifest: RecommendationsManifest) -> None:
    """Describe the parts of an attempt, and let it take the place of the folder."""
    write_json_atomically(attempt / MANIFEST, asdict(manifest))
    take_place(attempt, folder)


def take_place(attempt: Path, folder: Path) -> None:
    """Let an attempt take the place of the folder of results.

    Objects are copied: the old description is deleted first, and the new one is written last.
    """
    if isinstance(folder, ObjectPath):
        _replace_objects(attempt, folder)
        return
    old = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.attempt"
    if folder.exists():
        folder.rename(old)
    attempt.rename(folder)
    sync_folder(folder.parent)
    remove_tree(old, ignore_errors=True)


def _replace_objects(attempt: Path, folder: ObjectPath) -> None:
    """Copy the objects of an attempt to their place, those that describe the others last."""
    for name in DESCRIPTIONS:
        (folder / name).unlink(missing_ok=True)
    remove_tree(folder, ignore_errors=True)
    copy_tree(attempt, folder, last=DESCRIPTIONS)
    remove_tree(attempt, ignore_errors=True)


def read_recommendations(folder: Path) -> RecommendationsManifest | None:
    """Return the manifest of a folder if all of its files are there, else None."""
    with suppress(OSError, ValueError, TypeError):
        manifest = RecommendationsManifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        if manifest.format_version == FORMAT_VERSION and files_of(folder) == manifest.files:
            return manifest
    return None
