"""From a job to a sharded model with its optimizers, in the one order in which that works."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.next_item import NextItemModel
from models.tables import TableSpec
from sharding.optimizers import Optimizers
from sharding.place import place, tables_device
from sharding.ranks import Ranks
from trainer.config import TrainConfig
from trainer.job import Job


@dataclass(frozen=True)
class Built:
    """model: the single-device object whose tables were replaced by sharded ones; placed: the wrapper that names its state."""

    model: NextItemModel
    placed: nn.Module
    plan: dict[str, Any]


def build_model(job: Job, num_item_rows: int, ranks: Ranks) -> Built:
    """The model at its initial weights: a function of the seed, whatever the number of ranks or the plan."""
    spec = TableSpec("item", num_item_rows, job.tables["item"].dim)
    model = NextItemModel(job.model, spec, tables_device(job.tables, ranks.device))
    model.encoder.initialize(torch.Generator().manual_seed(job.seed))
    model.encoder.to(ranks.device)
    placement = place(model, job.tables, ranks, job.seed)
    return Built(model, placement.module, placement.plan)


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
