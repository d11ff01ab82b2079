"""The encoding of raw histories by an export: config, manifest and vocabularies of the dataset, from the folder of the export.

It takes the place of a trained model where trainer.inference.encoder reads these. Imports no TorchRec.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.config import ModelConfig
from models.features.inputs import ModelInputs
from trainer.config.run_config import RunConfig
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.vocabulary import Vocabulary, read_vocabulary
from trainer.export import folder as export_folder
from trainer.export.inputs import DynamicRows, Form


@dataclass(frozen=True)
class StoredJob:
    """The run of an export, as far as its folder keeps it."""

    config: RunConfig
    """The config of the run."""
    dataset_dir: Path
    """The folder with the manifest and the vocabularies of the dataset."""


@dataclass(frozen=True)
class StoredInputs:
    """The inputs of the model, as the catalogue of a dataset has them."""

    inputs: ModelInputs
    """Inputs besides items."""
    scores_unknown: bool
    """Whether items that the training part does not know have ids."""


@dataclass(frozen=True)
class StoredModel:
    """The settings of the model."""

    config: ModelConfig
    """The section [model]."""


@dataclass(frozen=True)
class ExportSource:
    """The encoding of an export."""

    job: StoredJob
    """The run."""
    manifest: Manifest
    """The manifest of the dataset."""
    catalogue: StoredInputs
    """The inputs."""
    model: StoredModel
    """The settings of the model."""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The items by id, with their training events."""
        return read_vocabulary(self.job.dataset_dir, self.manifest, self.catalogue.scores_unknown)

    @property
    def item_values(self) -> pa.Array:
        """Items as in the logs; entry k is id k + 1."""
        return self.vocabulary.values

    @property
    def train_events(self) -> np.ndarray:
        """Number of training events of each item, in the order of `item_values`."""
        return self.vocabulary.train_events

    def item_ids(self, values: pa.Array) -> np.ndarray:
        """Return the id of each item (as in the logs), (n,) int64; 0 for an item without one."""
        if pa.types.is_null(values.type):  # an empty list has no type
            return np.zeros(len(values), np.int64)
        places = pc.index_in(values, value_set=self.item_values, skip_nulls=True)
        ids: np.ndarray = pc.fill_null(places, -1).to_numpy().astype(np.int64) + 1
        return ids


class NoStoredHistories:
    """Histories of a dataset, of which an export has none."""

    def rows_of(self, users: pa.Array) -> np.ndarray:
        """Return -1 for each user: nobody is in the dataset."""
        return np.full(len(users), -1, np.int64)

    def user_features(self, rows: np.ndarray) -> dict[str, Any]:
        """Return no features."""
        assert not rows.size, "no user is stored"
        return {}


def read_source(folder: Path, form: Form, scores_unknown: bool) -> ExportSource:
    """Read the encoding of an export."""
    encoding = folder / export_folder.ENCODING
    config = RunConfig.model_validate(json.loads((folder / export_folder.CONFIG).read_text(encoding="utf-8")))
    return ExportSource(
        StoredJob(config, encoding),
        read_manifest(encoding),
        StoredInputs(form.inputs, scores_unknown),
        StoredModel(config.model),
    )


def read_dynamic(folder: Path) -> dict[str, DynamicRows]:
    """Read the rows of dynamic ids by table."""
    path = folder / export_folder.DYNAMIC
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        tables = {name.rpartition(".")[0] for name in arrays.files}
        return {table: DynamicRows(arrays[f"{table}.ids"], arrays[f"{table}.rows"]) for table in tables}
