"""What the settings' tests see of a next-item model that is built and given one batch.

Dense weights are filled by their names, so that a part which draws random numbers, and does nothing else, changes nothing.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.config.run_config import Config
from models.batches.history_batch import FIRST_ITEM
from tests.settings.lab import Lab
from trainer.config.job import Job
from trainer.data.dataset.manifest import read_manifest
from trainer.data.stream.order import Position
from trainer.loop.build import Built, build_model, build_optimizers
from trainer.tasks.ranking.daily_training import read_days
from trainer.tasks.task import Stream


@dataclass(frozen=True)
class Model:
    """A model with the first batch of its stream."""

    job: Job
    built: Built
    stream: Stream
    batch: Any

    @property
    def rows(self) -> dict[str, Tensor]:
        """What is looked up for the batch."""
        result: dict[str, Tensor] = self.built.model.look_up(self.batch.items)
        return result

    @property
    def dense(self) -> dict[str, nn.Parameter]:
        """The weights besides tables."""
        tables = {id(p) for p in self.built.model.tables.parameters()}
        return {n: p for n, p in self.built.model.named_parameters() if id(p) not in tables and p.numel()}


def model_of(lab: Lab, config: Config, fill: bool = True) -> Model:
    """Build a model in evaluation mode, its dense weights filled unless they are to stay as they begin."""
    job = lab.job(config)
    manifest = read_manifest(job.dataset_dir)
    daily = read_days(job, manifest, lab.world, fresh=True)
    built = build_model(job, manifest, lab.world, daily)
    stream = built.task.stream(lab.world)
    first = next(stream.steps(Position(daily.days.first if daily else 0, 0), 10**6))
    batch = built.task.complete_batch(first.batch, first.before, lab.world)
    batch, changed = built.dynamic.assign_rows(batch)
    built.dynamic.reset(changed, built.sharded_model, build_optimizers(built, job.config.train))
    model = Model(job, built, stream, batch)
    if fill:
        fill_by_name(model.dense)
    built.model.eval()
    return model


@torch.no_grad()
def fill_by_name(weights: dict[str, nn.Parameter]) -> None:
    """Fill weights with normal numbers that follow from their names alone."""
    for name, weight in weights.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))


def loss(lab: Lab, config: Config) -> float:
    """Return the mean loss over the first batch's targets."""
    model = model_of(lab, config)
    return float(model.built.model.loss(model.rows, model.batch)) / model.batch.num_targets


def scores(lab: Lab, config: Config) -> Tensor:
    """Return (B, items) scores of the known items for the first batch's histories."""
    model = model_of(lab, config)
    network, items = model.built.model, model.built.catalogue.known
    users = network.user_vectors(model.rows, model.batch)
    vectors = network.item_vectors(network.look_up(items), items)
    return (users @ vectors.T)[:, FIRST_ITEM:].detach()


def dense_shapes(lab: Lab, config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of dense weights by name."""
    return {name: tuple(weight.shape) for name, weight in model_of(lab, config).dense.items()}


def training_loss(lab: Lab, config: Config) -> float:
    """Return the same loss while training, with the dropout of step 0."""
    model = model_of(lab, config)
    model.built.model.train()
    torch.manual_seed(5)
    return float(model.built.model.loss(model.rows, model.batch).detach()) / model.batch.num_targets


def saved_numbers(lab: Lab, config: Config) -> int:
    """Return the count of numbers that the forward pass keeps for the backward pass."""
    model, kept = model_of(lab, config), [0]
    model.built.model.train()
    rows = {name: value.detach().requires_grad_() for name, value in model.rows.items()}

    def count(tensor: Tensor) -> Tensor:
        kept[0] += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.built.model.loss(rows, model.batch)
    return kept[0]


def initial_weights(lab: Lab, config: Config) -> dict[str, Tensor]:
    """Return the matrices of the encoder before training."""
    dense = model_of(lab, config, fill=False).dense
    return {n: p.detach() for n, p in dense.items() if n.startswith("encoder.blocks") and p.dim() == 2}


def num_blocks(lab: Lab, config: Config) -> int:
    """Return the number of attention blocks of the encoder."""
    return len({name.split(".")[2] for name in model_of(lab, config).dense if name.startswith("encoder.blocks.")})


def hidden_width(lab: Lab, config: Config) -> int:
    """Return the width of the hidden layer of the feed-forward part."""
    return model_of(lab, config).dense["encoder.blocks.0.feed_forward.into.weight"].shape[0]


def longest_history(lab: Lab, config: Config) -> int:
    """Return the number of input events of the longest history."""
    return int(model_of(lab, config).batch.layout.offsets.diff().max())


def num_targets(lab: Lab, config: Config) -> int:
    """Return the number of targets of the first batch."""
    return int(model_of(lab, config).batch.num_targets)


def told(lab: Lab, config: Config) -> dict[str, list[str]]:
    """Return the inputs of the model besides items, by owner."""
    model = model_of(lab, config)
    asked = model.batch.items
    candidates = sorted(asked.candidates) if hasattr(model.batch, "candidate_index") else []
    return {
        "events": sorted(asked.events),
        "users": sorted(asked.users),
        "candidates": candidates,
        "time": sorted(model.batch.time_rows),
    }


def event_seconds(lab: Lab, config: Config) -> Tensor:
    """Return seconds from the first event of a history to each of its events."""
    return model_of(lab, config).batch.times


def whole_seconds_of_milliseconds(lab: Lab, config: Config) -> Tensor:
    """Return the same by hand, of times that are milliseconds: each is rounded down by itself."""
    share = next(model_of(lab, config).stream.packed(Position(0, 0), 1)).share
    times = share.times // 1000
    return torch.from_numpy(times - np.repeat(times[share.offsets[:-1]], np.diff(share.offsets)))


def request_seconds(lab: Lab, config: Config) -> Tensor:
    """Return seconds from the first event of a history to the request after each of its events."""
    return model_of(lab, config).batch.request_times


def masked_share(lab: Lab, config: Config) -> float:
    """Return the share of the first batch's events that are masked."""
    return float(model_of(lab, config).batch.masked.float().mean())


def masked_last_only(lab: Lab, config: Config) -> bool:
    """Return True if the last event of every history is masked, and no other."""
    batch = model_of(lab, config).batch
    places = batch.masked.nonzero().flatten().tolist()
    return places == (batch.layout.offsets[1:] - 1)[batch.layout.offsets.diff() > 0].tolist()


def masked_places(lab: Lab, config: Config) -> list[int]:
    """Return which of the first batch's events are masked, where it has all histories."""
    batch = model_of(lab, config).batch
    masked = dict(zip(batch.row_ids.tolist(), batch.masked.split(batch.layout.offsets.diff().tolist()), strict=True))
    return [int(flag) for row in sorted(masked) for flag in masked[row].tolist()]
