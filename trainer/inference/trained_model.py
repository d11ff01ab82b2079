"""A trained model in one process: the weights of a checkpoint, with whole tables, and what turns raw values into its inputs.

No process group is needed. All tables are in memory, so this is for models that fit on one machine; the stages of a run score
with sharded tables instead. Scores are those of the evaluation of the same checkpoint, within rounding.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from models.features.catalogue import Catalogue
from models.features.request import ItemRequest
from sharding.tables.initialize import initialize_tables
from sharding.world import ALONE
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.finite import refuse_broken_checkpoint
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.checkpoint.keys import tensors_of
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.stream.catalogue_reader import read_catalogue
from trainer.errors import CheckpointError
from trainer.global_batch.dynamic_ids import DynamicTables
from trainer.inference.look_up import WholeTables
from trainer.loop.build import check_task, has_grown, table_specs, task_of
from trainer.loop.same_run import same_dataset
from trainer.optim.ema import WeightEma


@dataclass(frozen=True)
class TrainedModel:
    """A model of either task with the weights of a checkpoint, in evaluation mode, on the CPU."""

    job: Job
    """The run that trained it."""
    manifest: Manifest
    """The manifest of its dataset."""
    checkpoint: StoredCheckpoint
    """The checkpoint that was loaded."""
    model: Any
    """The model: a NextItemModel or a RankingModel."""
    catalogue: Catalogue
    """The items."""
    dynamic: DynamicTables
    """The mappings of its tables with dynamic ids."""

    @cached_property
    def tables(self) -> WholeTables:
        """The weights of its tables."""
        return WholeTables.of(self.model.tables)

    @cached_property
    def item_values(self) -> pa.Array:
        """Items as in the logs, in the order of their ids: entry k is id k + 1.

        Items that the training part does not know follow, if their features give them vectors.
        """
        return read_vocabulary(self.job.dataset_dir, self.manifest, self.catalogue.scores_unknown).values

    @property
    def num_items(self) -> int:
        """The number of items that can be scored."""
        return self.catalogue.num_ids - 1

    def look_up(self, request: ItemRequest) -> dict[str, torch.Tensor]:
        """Return the rows of a request by table, after the mapping of dynamic ids."""
        return self.tables.look_up(request)

    def item_ids(self, values: pa.Array) -> np.ndarray:
        """Return the id of each item (as in the logs), (n,) int64; 0 for an item without one."""
        if pa.types.is_null(values.type):  # an empty list has no type
            return np.zeros(len(values), np.int64)
        places = pc.index_in(values, value_set=self.item_values, skip_nulls=True)
        ids: np.ndarray = pc.fill_null(places, -1).to_numpy().astype(np.int64) + 1
        return ids

    @cached_property
    def train_events(self) -> np.ndarray:
        """Number of training events of each item, in the order of `item_values`: what popularity counts."""
        return read_vocabulary(self.job.dataset_dir, self.manifest, self.catalogue.scores_unknown).train_events


def load_trained_model(job: Job, checkpoint: StoredCheckpoint) -> TrainedModel:
    """Load the model of a verified checkpoint, as an evaluation does: with the weight EMA, if it has one.

    Args:
        job: the run that trained it, with the folder of its dataset.
        checkpoint: the checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another dataset, does not fit the settings, or holds non-finite values.
        UserError: there is no dataset.
    """
    manifest = read_manifest(job.dataset_dir)
    check_task(job, manifest)
    if not same_dataset(checkpoint.manifest, manifest):
        raise CheckpointError(
            f"checkpoint {checkpoint.path} was made from another dataset than {job.dataset_dir}; set run.dataset to its own"
        )
    catalogue = read_catalogue(job.dataset_dir, manifest, job.config.tables, job.config.model)
    task = task_of(job, manifest, catalogue, ALONE)
    specs = table_specs(job, manifest, catalogue, lambda name: False)
    model = task.new_model(specs)
    assert isinstance(model.tables, nn.Module)
    model.tables.to_empty(device="cpu")
    tables = {spec.name: job.config.tables[spec.name] for spec in specs}
    dynamic = DynamicTables(tables, catalogue.features, job.config.run.seed, catalogue.inputs)
    grew = has_grown(checkpoint, manifest.grown_from)
    if grew:  # rows that the checkpoint lacks keep their initial values
        initialize_tables(model, job.config.run.seed, {name: config.init_std for name, config in tables.items()})
    decay = checkpoint.manifest.config["train"].get("ema_decay")
    ema = None if decay is None else WeightEma(model, tables, decay)
    state = dynamic.tensors() | task.tensors()
    with warnings.catch_warnings():  # that there is no process group is the intention
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        checkpoint_tensors.load(checkpoint, model, tables, None, state, ema, tables_grew=grew)
    dynamic.load(state)
    if ema is not None:
        ema.apply()
    refuse_broken_checkpoint(checkpoint, tensors_of(model, tables, None), ALONE)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return TrainedModel(job, manifest, checkpoint, model, catalogue, dynamic)
