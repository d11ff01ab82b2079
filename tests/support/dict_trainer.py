"""A trainer of models with a dynamic table written by hand: a dict of rows, one for each id that has one, and plain Adagrad.

What an id leaves behind is gone from the dict, so nothing of it can come back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.batches.history_batch import HistoryBatch
from models.features.catalogue import Catalogue, IdColumn
from models.next_item.model import NextItemModel
from models.tables import TableSpec
from sharding.config import DynamicIdsConfig
from sharding.tables.initialize import initial_weights, initialize_tables
from sharding.world import World
from tests.sharding.dynamic_ids.dict_ids import DictIds
from trainer.config.job import SILENT, Job
from trainer.data.dataset.features import MISSING
from trainer.data.stream.order import Position
from trainer.loop.train import Training


@dataclass
class Row:
    weights: Tensor
    accumulator: Tensor

    def update(self, gradient: Tensor, rate: float, eps: float) -> None:
        self.accumulator += gradient**2
        self.weights -= rate * gradient / (self.accumulator.sqrt() + eps)


def events_of(batch: HistoryBatch) -> list[int]:
    """Return the items of all histories, each event once."""
    inputs, targets = batch.lookup_ids[batch.history_index].tolist(), batch.target_ids.tolist()
    found = []
    for start, stop in zip(batch.layout.offsets.tolist(), batch.layout.offsets.tolist()[1:], strict=False):
        found += inputs[start:stop] + ([targets[stop - 1]] if stop > start else [])
    return found


def used_ids(batch: HistoryBatch, catalogue: Catalogue) -> list[int]:
    """Return the values of each event's item."""
    used = []
    for item in events_of(batch):
        for column in catalogue.columns.values():
            assert isinstance(column, IdColumn)
            used += column.values[column.offsets[item] : column.offsets[item + 1]].tolist()
    return used


def train_by_hand(world: World, job: Job) -> tuple[list[float], dict[int | None, Row], Tensor, int]:
    """Losses, what the label table has for each id (None: those without a row), the item table, and how many lost their row."""
    torch.set_num_threads(1)
    training = Training(job, world, SILENT)  # for its batches only
    catalogue, table = training.built.catalogue, job.config.tables["label"]
    assert isinstance(table.ids, DynamicIdsConfig)
    size = catalogue.num_known, job.config.tables["item"].dim
    model = NextItemModel(job.config.model, [TableSpec("item", *size)], torch.device("cpu"), catalogue.features)
    model.initialize(torch.Generator().manual_seed(job.config.run.seed))
    initialize_tables(model, job.config.run.seed, {"item": job.config.tables["item"].init_std})
    model.train()
    items = Row(next(model.tables.parameters()).detach(), torch.zeros(size))
    dense_parameters = [*model.encoder.parameters(), *model.items.parameters()]
    dense = torch.optim.Adagrad(dense_parameters, lr=job.config.train.learning_rate)
    ids = DictIds(table.ids)

    def fresh(row: int) -> Row:
        generation = torch.tensor([ids.generations[row]])
        drawn = initial_weights(
            job.config.run.seed, "label", torch.tensor([row]), generation, range(table.dim), table.dim, table.init_std
        )
        return Row(drawn[0].float(), torch.zeros(table.dim))

    rows: dict[int | None, Row] = {None: fresh(0)}
    losses, num_evicted = [], 0
    for step in training.stream.steps(Position(0, 0), job.config.train.epochs):
        batch = step.batch
        ids.observe(used_ids(batch, catalogue))
        for gone, _ in ids.evicted:
            del rows[gone]
        rows |= {new: fresh(row) for new, row in ids.admitted}
        num_evicted += len(ids.evicted)
        asked = batch.items.rows["label"].tolist()
        assert MISSING not in asked
        owners = [raw if raw in ids.rows else None for raw in asked]
        label = torch.stack([rows[owner].weights for owner in owners]).requires_grad_()
        boundary = {"item": items.weights[batch.items.rows["item"]].requires_grad_(), "label": label}
        loss, num_targets = model.loss(boundary, batch), batch.target_ids.numel()
        loss.backward()
        losses.append(loss.item() / num_targets)
        gradients: dict[int | None, Tensor] = {}
        assert label.grad is not None
        for owner, gradient in zip(owners, label.grad / num_targets, strict=True):
            gradients[owner] = gradients.get(owner, torch.zeros(table.dim)) + gradient
        for owner, gradient in gradients.items():
            rows[owner].update(gradient, table.learning_rate, table.eps)
        whole_gradient = torch.zeros_like(items.weights)
        assert boundary["item"].grad is not None
        whole_gradient[batch.items.rows["item"]] = boundary["item"].grad / num_targets
        items.update(whole_gradient, job.config.tables["item"].learning_rate, job.config.tables["item"].eps)
        for parameter in dense_parameters:
            if parameter.grad is not None:
                parameter.grad /= num_targets
        dense.step()
        dense.zero_grad()
    return losses, rows, items.weights, num_evicted
