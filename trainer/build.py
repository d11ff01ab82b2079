"""From a job to a sharded model with its optimizers, in the one order in which that works."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.next_item import NextItemModel
from models.tables import TableSpec
from sharding.config import HashIdsConfig, TableConfig
from sharding.optimizers import Optimizers
from sharding.place import place, tables_device
from sharding.ranks import Ranks
from trainer.config import TrainConfig
from trainer.dataset.features import hash_rows
from trainer.dataset.manifest import Manifest
from trainer.dataset.vocabulary import read_vocabulary
from trainer.errors import UserError
from trainer.job import Job


@dataclass(frozen=True)
class Built:
    """model: the single-device object whose tables were replaced by sharded ones; placed: the wrapper that names its state."""

    model: NextItemModel
    placed: nn.Module
    plan: dict[str, Any]


def build_model(job: Job, manifest: Manifest, ranks: Ranks) -> Built:
    """The model at its initial weights: a function of the seed, whatever the number of ranks or the plan.

    Raises UserError if the dataset is for another task than the model.
    """
    if manifest.task != job.model.task:
        raise UserError(
            f'dataset {job.dataset_dir} holds impressions with labels, for model.task = "{manifest.task}", and '
            f'model.task = "{job.model.task}"; leave out logs.labels to train on events'
        )
    tables = {"item": job.tables["item"]}
    num_rows, item_rows = _item_rows(job, manifest, tables["item"])
    spec = TableSpec("item", num_rows, tables["item"].dim)
    model = NextItemModel(job.model, spec, tables_device(tables, ranks.device), item_rows)
    model.encoder.initialize(torch.Generator().manual_seed(job.seed))
    model.encoder.to(ranks.device)
    if item_rows is not None:
        model.item_rows = item_rows.to(ranks.device)
    placement = place(model, tables, ranks, job.seed)
    return Built(model, placement.module, placement.plan)


def _item_rows(job: Job, manifest: Manifest, table: TableConfig) -> tuple[int, Tensor | None]:
    """Rows of the item table, and the row of every item id where ids are hashed."""
    if not isinstance(table.ids, HashIdsConfig):
        return manifest.num_item_rows, None
    rows = hash_rows(read_vocabulary(job.dataset_dir, manifest).values, table.ids.num_rows)
    return table.ids.num_rows, torch.cat((torch.zeros(1, dtype=torch.int64), torch.from_numpy(rows).long()))


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
