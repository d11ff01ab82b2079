"""The format of an export: the files of its folder, and the manifest that describes them.

    export/
      manifest.json       the Manifest of this module; written last, by atomic rename: without it there is no export
      program.pt2         the program: histories (or impressions) in, user vectors (or logits) out (trainer.export.programs)
      config.json         the config of the run
      encoding/           manifest and vocabularies of the dataset: what turns raw values into ids and numbers
      dynamic.npz         for tables with dynamic ids: TABLE.ids (n,) int64 ascending, and TABLE.rows (n,) int64
      item_vectors.npy    (V, D) float32; entry k is the vector of id k + 1 (next item)
      item_codes.npy      with int8, in place of item_vectors.npy: (V, D) uint8 ...
      item_steps.npy      ... and (V, 2) float32, scale and offset of each row
      items.faiss         an index of the item vectors for approximate search (optional)
      program.onnx        the program as ONNX (optional)

Imports no TorchRec.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.features.inputs import ModelInputs
from models.features.time import Clock
from models.features.values import InputFeature
from trainer.data.dataset.manifest import StoredFile
from trainer.errors import UserError
from trainer.export.inputs import Form
from trainer.export.tables import Precision
from trainer.storage.files import hash_file, write_json_atomically

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PROGRAM = "program.pt2"
CONFIG = "config.json"
ENCODING = "encoding"
DYNAMIC = "dynamic.npz"
ITEM_VECTORS = "item_vectors.npy"
ITEM_CODES = "item_codes.npy"
ITEM_STEPS = "item_steps.npy"
INDEX = "items.faiss"
ONNX = "program.onnx"


@dataclass(frozen=True)
class ProgramInput:
    """An input of the program."""

    name: str
    dtype: str
    """Such as "int64"."""
    shape: tuple[str | int, ...]
    """Sizes; those that may vary by name, such as "events"."""


@dataclass(frozen=True)
class Manifest:
    """Everything that a reader of the folder must know besides the files themselves."""

    task: str
    """ "next_item" or "ranking"."""
    precision: Precision
    """Of the tables and the item vectors."""
    form: dict[str, Any]
    """What the program needs of histories, as `form_of` reads it."""
    inputs: tuple[ProgramInput, ...]
    """Inputs of the program, in order."""
    labels: tuple[str, ...]
    """Columns of the logits, for rankers."""
    scores_unknown: bool
    """Whether items that the training part does not know have vectors, from their features."""
    num_items: int
    """Items that can be scored."""
    source: dict[str, Any]
    """Run, checkpoint, and digests of config and dataset."""
    versions: dict[str, str]
    """Of Shoal and of the packages that wrote the folder."""
    parity: dict[str, Any] = field(default_factory=dict)
    """Differences from the trained model, measured at the export (trainer.export.parity)."""
    num_bytes: dict[str, int] = field(default_factory=dict)
    """Size of tables and item vectors: in float32, and as they are stored."""
    index: dict[str, Any] | None = None
    """Kind, settings and recall of the index, if there is one."""
    onnx: dict[str, Any] | None = None
    """Names of inputs and output of the ONNX file, if there is one."""
    files: tuple[StoredFile, ...] = ()
    """All other files."""
    format_version: int = FORMAT_VERSION


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the export valid."""
    write_json_atomically(folder / MANIFEST, asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest. Raises UserError if there is no export, or one of another format version."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: is no export of a model ({error}); make one with `shoal export`") from None
    if not isinstance(values, Mapping) or "precision" not in values:
        raise UserError(f"{path}: is no manifest of an export; make one with `shoal export RUN_DIR --out FOLDER`")
    if values["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {values['format_version']}, and this version of shoal reads {FORMAT_VERSION}; "
            "export the run again"
        )
    return Manifest(
        **{
            **values,
            "inputs": tuple(ProgramInput(**{**entry, "shape": tuple(entry["shape"])}) for entry in values["inputs"]),
            "labels": tuple(values["labels"]),
            "files": tuple(StoredFile(**file) for file in values["files"]),
        }
    )


def stored_files(folder: Path) -> tuple[StoredFile, ...]:
    """Return all files of a folder but the manifest, with their hashes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return tuple(StoredFile(str(path.relative_to(folder)), path.stat().st_size, hash_file(path)) for path in paths)


def verify(folder: Path, manifest: Manifest) -> None:
    """Check that every file is present and unchanged. Raises UserError naming the file."""
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.num_bytes or hash_file(path) != file.sha256:
            raise UserError(
                f"{path}: is missing or differs from the manifest; copy the whole export again, or make it again"
            )


def form_values(form: Form) -> dict[str, Any]:
    """Return a form as plain values, without the rows of dynamic ids, which have a file of their own."""
    values = asdict(form)
    del values["dynamic"]
    return values


def form_of(values: Mapping[str, Any]) -> Form:
    """Return the form of plain values."""
    given = values["inputs"]
    clock = given["clock"]
    inputs = ModelInputs(
        **{
            owners: tuple(InputFeature(**feature) for feature in given[owners])
            for owners in ("events", "users", "candidates")
        },
        clock=None if clock is None else Clock(**{**clock, "parts": tuple(clock["parts"])}),
    )
    return Form(**{**values, "inputs": inputs})
