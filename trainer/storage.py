"""Hashes of values and files, and small files written so that a reader never sees half of one."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def digest_of(values: Any) -> str:
    """sha256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json_atomically(path: Path, values: Any) -> None:
    write_text_atomically(path, json.dumps(values, indent=1))


def write_text_atomically(path: Path, text: str) -> None:
    """Write, flush to the disk, rename: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
