"""Folder of explanations: tables of all workers, a page, and _explanations.json, which describes them. Imports no torch.

    events/part-*.parquet         one row per user, explained item, method and event of the history
    sets/part-*.parquet           one row per user and explained item: the smallest set that changes the answer
    heads/part-*.parquet          one row per user, explained item and attention head: the effect of the head
    attention_groups.parquet      share of attention by group of events, for each head
    attention_heads.parquet       entropy and effective number of events of each head
    faithfulness.json             how faithful the methods are for this model (absent if it was not measured)
    explain.html                  the page

Workers write into a hidden folder next to it, which takes its place when everything is there.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainer.recommend.folder import take_place
from trainer.storage.files import write_json_atomically
from trainer.storage.parquet import read_parquet

MANIFEST = "_explanations.json"
FORMAT_VERSION = 1
PAGE = "explain.html"
FAITHFULNESS = "faithfulness.json"
EVENTS, SETS, HEADS = "events", "sets", "heads"
TABLES = (EVENTS, SETS, HEADS)
ATTENTION_GROUPS = "attention_groups.parquet"
ATTENTION_HEADS = "attention_heads.parquet"


@dataclass(frozen=True)
class ExplanationsManifest:
    """Content of _explanations.json."""

    format_version: int
    """Version of this file's form."""
    inputs: str
    """Digest of everything that the explanations depend on."""
    task: str
    """"next_item" or "ranking"."""
    checkpoint: str
    """Name of the checkpoint."""
    dataset: str
    """Digest of the dataset."""
    options: dict[str, Any]
    """Options of the command."""
    methods: list[str]
    """Names of the methods, the one that the page shows first."""
    why_method: str
    """Why this method is shown first, in a sentence."""
    at: int | None
    """Time of the requests in the unit of the dataset; None: of each user, see docs/explain.md."""
    num_users: int
    """Users with an explanation."""
    num_without: int
    """Users of whom nothing could be explained."""
    num_questions: int
    """Explained pairs of a user and an item."""
    num_rows: int
    """Rows of the values of events."""
    seconds: float
    """Duration on the slowest worker, without the start of workers and the loading of the model."""
    num_workers: int
    """Number of workers."""
    files: dict[str, int]
    """Bytes of each file by name."""


def read_table(folder: Path, name: str) -> pa.Table | None:
    """Return the rows of one of TABLES of all workers, in the order of the workers; None if there are none."""
    paths = sorted((folder / name).glob("part-*.parquet"))
    return pa.concat_tables([read_parquet(path) for path in paths]) if paths else None


def files_of(folder: Path) -> dict[str, int]:
    """Return the bytes of each finished file by its path in the folder."""
    files = [
        *folder.glob("*/part-*.parquet"),
        *folder.glob("*.parquet"),
        *folder.glob(PAGE),
        *folder.glob(FAITHFULNESS),
    ]
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def commit(attempt: Path, folder: Path, manifest: ExplanationsManifest) -> None:
    """Describe the files of an attempt, and let it take the place of the folder."""
    write_json_atomically(attempt / MANIFEST, asdict(manifest))
    take_place(attempt, folder)


def read_explanations(folder: Path) -> ExplanationsManifest | None:
    """Return the manifest of a folder if all of its files are there, else None."""
    with suppress(OSError, ValueError, TypeError):
        manifest = ExplanationsManifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        if manifest.format_version == FORMAT_VERSION and files_of(folder) == manifest.files:
            return manifest
    return None
