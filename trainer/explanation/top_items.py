"""The two best items for variants of histories: what changes when events are removed.

The items that are left out stay those of the unchanged history, so removing an event does not make its item a candidate.

Shapes: B questions, M variants of them, C candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from trainer.data.stream.columns import Column, gather, take_all
from trainer.evaluation.next_item.scoring import ItemShard, Query, rank_items
from trainer.explanation.explained import (
    INTERNAL_BATCH_EVENTS,
    Explained,
    ExplainedNextItem,
    ExplainedRanker,
    pieces,
    score,
)
from trainer.explanation.questions import Questions
from trainer.inference.next_item import item_vectors

BLOCK_ITEMS = 65_536  # items that are scored at a time


@dataclass(frozen=True)
class TopTwo:
    """The best and the second best item of each variant."""

    items: np.ndarray
    """(M, 2) int64 ids, the best first; 0 where no item is left."""
    scores: np.ndarray
    """(M, 2) float32, minus infinity where no item is left."""

    @property
    def lead(self) -> np.ndarray:
        """By how much the best item leads, (M,)."""
        lead: np.ndarray = self.scores[:, 0] - self.scores[:, 1]
        return lead


class TopItems(Protocol):
    """The candidates among which a model chooses."""

    @property
    def model(self) -> Explained:
        """The model."""

    def best_two(self, variants: Questions, question: np.ndarray, most_events: int | None = None) -> TopTwo:
        """Return the two best items of each variant. Collective.

        Args:
            variants: M variants of questions.
            question: (M,) int64, number of the question of each variant.
            most_events: number of events that are encoded at a time.
        """


@dataclass(frozen=True)
class CatalogueTop:
    """A next-item model that chooses among all items but those that a question leaves out."""

    model: ExplainedNextItem
    """The model."""
    shard: ItemShard
    """Vectors of the items of this worker."""
    left_out: np.ndarray
    """Packed ids of the items that are no candidates."""
    bounds: np.ndarray
    """(B + 1,) int64 bounds of these by question."""

    @torch.no_grad()
    def best_two(self, variants: Questions, question: np.ndarray, most_events: int | None = None) -> TopTwo:
        """Return the two best items of each variant. Collective. Arguments as for `TopItems.best_two`."""
        items = np.zeros((variants.size, 2), np.int64)
        scores = np.full((variants.size, 2), -np.inf, np.float32)
        for piece in pieces(variants.lengths, most_events or INTERNAL_BATCH_EVENTS, self.model):
            part = variants.part(piece.start, piece.stop)
            prepared = self.model.prepare(part)
            users = self.model.user_vectors(prepared, self.model.vectors(prepared))
            own = question[piece]
            seen, offsets = gather(self.left_out, self.bounds[own], self.bounds[own + 1])
            none = np.zeros(part.size + 1, np.int64)
            query = Query(users, seen, offsets, none[:0], none)
            ranked = rank_items(query, self.shard, 2, True, BLOCK_ITEMS, self.model.tables.world)
            number = ranked.top_items.shape[1]
            items[piece, :number] = ranked.top_items
            scores[piece, :number] = ranked.top_scores
        return TopTwo(items, scores)


@dataclass(frozen=True)
class CandidatesTop:
    """A ranker that chooses among given candidates, the same for every question."""

    model: ExplainedRanker
    """The model."""
    ids: np.ndarray
    """(C,) int64 ids, at least two."""
    features: Mapping[str, Column]
    """Features of their impressions by name, an entry per candidate."""

    def best_two(self, variants: Questions, question: np.ndarray, most_events: int | None = None) -> TopTwo:
        """Return the two best candidates of each variant. Collective. Arguments as for `TopItems.best_two`."""
        del question  # every question has the same candidates
        number = self.ids.size
        candidate = np.tile(np.arange(number), variants.size)
        repeated = variants.take(np.repeat(np.arange(variants.size), number))
        repeated = repeated.with_targets(self.ids[candidate], take_all(self.features, candidate))
        scores = score(self.model, repeated, most_events).reshape(variants.size, number)
        # Of equal scores the smaller id comes first, as in recommendations.
        by_id = np.argsort(self.ids, kind="stable")
        order = by_id[np.argsort(-scores[:, by_id], axis=1, kind="stable")[:, :2]]
        return TopTwo(self.ids[order], np.take_along_axis(scores, order, axis=1))


def whole_catalogue_top(model: ExplainedNextItem, left_out: np.ndarray, bounds: np.ndarray) -> CatalogueTop:
    """Return the candidates of a model with whole tables in this process.

    Args:
        model: the model.
        left_out: packed ids of the items that are no candidates, such as those of the history.
        bounds: (B + 1,) int64 bounds of these by question.
    """
    return CatalogueTop(model, ItemShard(item_vectors(model.trained), 1), left_out, bounds)
