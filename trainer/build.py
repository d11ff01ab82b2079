"""From a job to a sharded model with its optimizers, in the one order in which that works."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.item_features import Catalogue
from models.next_item import NextItemModel
from models.tables import TableSpec
from sharding.optimizers import Optimizers
from sharding.place import place, tables_device
from sharding.ranks import Ranks
from trainer.config import TrainConfig
from trainer.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.job import Job
from trainer.stream.catalogue import read_catalogue
from trainer.table_loads import stored_rows


@dataclass(frozen=True)
class Built:
    """model: the single-device object whose tables were replaced by sharded ones; placed: the wrapper that names its state."""

    model: NextItemModel
    placed: nn.Module
    plan: dict[str, Any]
    catalogue: Catalogue


def build_model(job: Job, manifest: Manifest, ranks: Ranks) -> Built:
    """The model at its initial weights: a function of the seed, whatever the number of ranks or the plan.

    Raises UserError if the dataset is for another task than the model.
    """
    if manifest.task != job.model.task:
        raise UserError(
            f'dataset {job.dataset_dir} is for task "{manifest.task}" (logs.labels names labels), and the model for '
            f'"{job.model.task}"; there is no model for ranking yet: leave out logs.labels to train on events'
        )
    catalogue = read_catalogue(job.dataset_dir, manifest, job.tables)
    specs = _tables(job, manifest)
    tables = {spec.name: job.tables[spec.name] for spec in specs}
    model = NextItemModel(job.model, specs, tables_device(tables, ranks.device), catalogue.features)
    model.initialize(torch.Generator().manual_seed(job.seed))
    model.encoder.to(ranks.device)
    model.items.to(ranks.device)
    placement = place(model, tables, ranks, job.seed)
    return Built(model, placement.module, placement.plan, catalogue)


def _tables(job: Job, manifest: Manifest) -> list[TableSpec]:
    """The table of items, and those of their features."""
    rows = stored_rows(job.tables, manifest)
    return [TableSpec(name, num_rows, job.tables[name].dim) for name, num_rows in rows.items()]


def build_optimizers(built: Built, config: TrainConfig) -> Optimizers:
    """The fused optimizers of the tables and the configured dense one."""

    def dense(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        match config.optimizer:
            case "adamw":
                return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
            case "adagrad":
                return torch.optim.Adagrad(parameters, lr=config.learning_rate)
            case "sgd":
                return torch.optim.SGD(parameters, lr=config.learning_rate)

    return Optimizers(built.placed, dense)
