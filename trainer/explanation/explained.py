"""Interface between methods of explanation and a trained model, the same for both tasks and for whole and sharded tables.

    prepared = model.prepare(asked)          # look-ups: collective with sharded tables
    vectors = model.vectors(prepared)        # (N, D), a vector for each event
    scores = model.scores(prepared, vectors) # (B,), differentiable in the vectors

A score is what candidates are ordered by: for a next-item model the product of the vectors of history and item, for a ranker the
logit of one label. Only `prepare` and the functions that say so are collective.

Shapes: B questions, N events of all of them, D model width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.batches.history_batch import as_tensor
from models.features.request import ItemRequest
from models.ranking.reach import Reach, reach_of
from sharding.world import World
from trainer.data.stream.held_out import query_batch
from trainer.data.stream.impressions import Candidates, JaggedImpressions, ranking_batch
from trainer.errors import UserError
from trainer.explanation.questions import Questions
from trainer.inference.requests import with_requests
from trainer.inference.trained_model import ALONE, TrainedModel

INTERNAL_BATCH_EVENTS = 16_384
"""Events that are encoded at a time, by default."""


@dataclass(frozen=True)
class Prepared:
    """Questions with everything that was looked up for them, on the device."""

    asked: Questions
    """The questions."""
    batch: Any
    """The batch of the model. It may have more events than the questions."""
    rows: dict[str, Tensor]
    """Looked-up vectors."""
    events: Tensor | None
    """(N,) int64, place of each event in the batch; None: the same."""
    targets: Tensor | None
    """For next-item models, vectors of the targets, (B, D)."""


class Explained(Protocol):
    """A trained model that is explained."""

    @property
    def trained(self) -> TrainedModel:
        """The model and its dataset."""

    @property
    def max_events(self) -> int:
        """Number of events, the most recent ones, that a score depends on."""

    def most(self, number: int) -> int:
        """Return the largest number that any worker gives. Collective."""

    def prepare(self, asked: Questions) -> Prepared:
        """Look up everything that the scores of questions need. Collective."""

    def vectors(self, prepared: Prepared) -> Tensor:
        """Return the vector of each event, with its features and times, before positions are added, (N, D)."""

    def scores(self, prepared: Prepared, vectors: Tensor) -> Tensor:
        """Return the scores (B,) of questions with these vectors of events, (N, D)."""


@dataclass(frozen=True)
class Tables:
    """Look-ups of a trained model: in whole tables of this process, or in tables that are sharded over workers."""

    trained: TrainedModel
    """The model."""
    world: World
    """The workers."""
    sharded: bool
    """Whether the tables are sharded modules."""

    def look_up(self, request: ItemRequest) -> tuple[dict[str, Tensor], ItemRequest]:
        """Return the rows of a request, and the request on the device of this worker. Collective."""
        if not self.sharded:
            request = self.trained.dynamic.rows_of(request)
            return self.trained.tables.look_up(request), request
        moved = self.trained.dynamic.rows_of(request).to(self.world.device)
        with torch.no_grad():
            rows: dict[str, Tensor] = self.trained.model.look_up(moved)
        return {name: vectors.detach() for name, vectors in rows.items()}, moved

    def most(self, number: int) -> int:
        """Return the largest number that any worker gives. Collective."""
        return max(self.world.gather_ints(number)) if self.world.world_size > 1 else number


@dataclass(frozen=True)
class ExplainedNextItem:
    """A next-item model. The score of a question is the product of the vectors of its history and of its target."""

    tables: Tables
    """Look-ups."""

    @property
    def trained(self) -> TrainedModel:
        """The model and its dataset."""
        return self.tables.trained

    @property
    def max_events(self) -> int:
        """The longest history that the model encodes. One that restores masked items needs a place for the masked one."""
        config = self.trained.model.config
        return int(config.max_history) - int(config.masks_items)

    def most(self, number: int) -> int:
        """Return the largest number that any worker gives. Collective."""
        return self.tables.most(number)

    def prepare(self, asked: Questions) -> Prepared:
        """Look up the items of the histories, and the targets. Collective."""
        config = self.trained.model.config
        given = with_requests(
            asked.users,
            asked.offsets,
            asked.items,
            asked.times,
            asked.features,
            asked.user_features,
            asked.requested_at,
        )
        rows = np.arange(asked.size)
        batch = query_batch(
            given.packed, rows, rows, given.lengths, self.trained.catalogue, config.max_history, config.masks_items
        )
        looked_up, request = self.tables.look_up(batch.items)
        batch = replace(batch, items=request).to(self.tables.world.device)
        events = None
        if batch.masked is not None:
            events = (~batch.masked).nonzero().squeeze(1)
        return Prepared(asked, batch, looked_up, events, self.item_vectors(asked.targets))

    def vectors(self, prepared: Prepared) -> Tensor:
        """Return the vector of each event, (N, D)."""
        vectors: Tensor = self.trained.model.event_vectors(prepared.rows, prepared.batch)
        return with_zeros(vectors if prepared.events is None else vectors[prepared.events], prepared.asked)

    def scores(self, prepared: Prepared, vectors: Tensor) -> Tensor:
        """Return the scores (B,) of questions with these vectors of events; 0 for a history without events."""
        users = self.user_vectors(prepared, vectors)
        assert prepared.targets is not None
        return (users * prepared.targets).sum(dim=1)

    def user_vectors(self, prepared: Prepared, vectors: Tensor) -> Tensor:
        """Return the vectors of the histories, (B, D); zeros for a history without events."""
        if prepared.events is not None:
            # The model replaces the vector of a masked event by a learned one.
            whole = vectors.new_zeros((prepared.batch.layout.num_events, vectors.shape[1]))
            vectors = whole.index_copy(0, prepared.events, vectors)
        users: Tensor = self.trained.model.user_vectors_from(vectors, prepared.batch)
        filled = torch.from_numpy(prepared.asked.lengths > 0).to(users.device)
        return torch.where(filled[:, None], users, 0.0)

    def item_vectors(self, ids: np.ndarray) -> Tensor:
        """Return the vectors of items with these ids, in any order, (n, D). Collective."""
        unique, place = np.unique(ids, return_inverse=True)
        rows, request = self.tables.look_up(self.trained.catalogue.request(unique))
        with torch.no_grad():
            vectors: Tensor = self.trained.model.item_vectors(rows, request)
        return vectors[torch.from_numpy(place).to(vectors.device)]


@dataclass(frozen=True)
class ExplainedRanker:
    """A ranker. The score of a question is the logit of one label for an impression of its target."""

    tables: Tables
    """Look-ups."""
    label: str
    """The label that is explained."""

    @property
    def trained(self) -> TrainedModel:
        """The model and its dataset."""
        return self.tables.trained

    @property
    def reach(self) -> Reach:
        """Return how far back scores depend on events."""
        return reach_of(self.trained.model.config)

    @property
    def max_events(self) -> int:
        """Number of events, the most recent ones, that a score depends on through all layers."""
        return self.reach.receptive

    def most(self, number: int) -> int:
        """Return the largest number that any worker gives. Collective."""
        return self.tables.most(number)

    def prepare(self, asked: Questions) -> Prepared:
        """Look up the events and the targets. Collective."""
        assert asked.requested_at is not None, "rankers need times"
        candidates = Candidates(
            offsets=np.arange(asked.size + 1),
            items=asked.targets.astype(np.int32),
            times=asked.requested_at,
            history_end=asked.lengths,
            place=np.zeros(asked.size, np.int64),
            labels={},
            features=asked.target_features,
        )
        gathered = JaggedImpressions(
            asked.keys,
            asked.offsets,
            asked.items,
            candidates,
            asked.times,
            asked.features,
            asked.user_features,
            asked.earlier,
        )
        batch = ranking_batch(gathered, self.trained.catalogue, self.reach)
        looked_up, request = self.tables.look_up(batch.items)
        return Prepared(asked, replace(batch, items=request).to(self.tables.world.device), looked_up, None, None)

    def vectors(self, prepared: Prepared) -> Tensor:
        """Return the vector of each event, (N, D); zeros for a model without interest in the history."""
        vectors: Tensor = self.trained.model.event_vectors(prepared.rows, prepared.batch)
        return with_zeros(vectors, prepared.asked)

    def scores(self, prepared: Prepared, vectors: Tensor) -> Tensor:
        """Return the logits (B,) of the label with these vectors of events, (N, D)."""
        model = self.trained.model
        logits: Tensor = model.logits_from(vectors, prepared.rows, prepared.batch)
        return logits[:, model.labels.index(self.label)]


def explained_model(trained: TrainedModel, world: World | None = None, label: str | None = None) -> Explained:
    """Return what methods of explanation need of a trained model.

    Args:
        trained: the model.
        world: the workers over which its tables are sharded; None: they are whole, in this process.
        label: for rankers, the label to explain; None: the only one.

    Raises:
        UserError: the ranker does not predict the label, or predicts several and none is named.
    """
    tables = Tables(trained, world or ALONE, world is not None)
    trained.model.eval()
    for parameter in trained.model.parameters():
        # The shards of a table can be views, and the flag of a view cannot be changed. Their look-ups have no gradient anyway.
        if parameter.is_leaf:
            parameter.requires_grad_(False)
    if trained.manifest.task != "ranking":
        return ExplainedNextItem(tables)
    labels = trained.model.labels
    if label is None and len(labels) > 1:
        raise UserError(f"label: the model predicts {', '.join(labels)}; choose the one to explain")
    if label is not None and label not in labels:
        raise UserError(f"label: the model predicts {', '.join(labels)}, and not {label}")
    return ExplainedRanker(tables, label or labels[0])


def with_zeros(vectors: Tensor, asked: Questions) -> Tensor:
    """Return vectors (N, D) in which masked events are zeros."""
    if asked.zeroed is None:
        return vectors
    return vectors * as_tensor((~asked.zeroed).astype(np.float32)).to(vectors)[:, None]


def pieces(lengths: np.ndarray, most_events: int, model: Explained) -> Iterator[slice]:
    """Yield consecutive questions with about `most_events` events, as many pieces on every worker. Collective.

    A single question may have more events. The last pieces of a worker are empty if others have more.

    Args:
        lengths: number of events of each question.
        most_events: events of a piece.
        model: the model, which knows the workers.
    """
    bounds = piece_bounds(lengths, most_events)
    number = len(bounds) - 1
    for piece in range(model.most(number)):
        yield slice(bounds[piece], bounds[piece + 1]) if piece < number else slice(lengths.size, lengths.size)


def piece_bounds(lengths: np.ndarray, most_events: int) -> list[int]:
    """Return the first question of each piece, and the number of questions."""
    # An empty history costs something too.
    total = np.cumsum(np.maximum(lengths, 1))
    bounds = [0]
    while bounds[-1] < lengths.size:
        before = total[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(total, before + most_events, side="right"))))
    return bounds


@torch.no_grad()
def score(model: Explained, asked: Questions, internal_batch_size: int | None = None) -> np.ndarray:
    """Return the scores of questions, (B,) float32. Collective.

    internal_batch_size: number of events that are encoded at a time.
    """
    scores = np.zeros(asked.size, np.float32)
    for piece in pieces(asked.lengths, internal_batch_size or INTERNAL_BATCH_EVENTS, model):
        prepared = model.prepare(asked.take(np.arange(piece.start, piece.stop)))
        scores[piece] = model.scores(prepared, model.vectors(prepared)).cpu().numpy()
    return scores
