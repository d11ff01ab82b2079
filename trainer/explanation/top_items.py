"""The two best items for variants of histories: what changes when events are removed.

Shapes: B questions, M variants of them, C candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from trainer.data.stream.columns import Column, take_all
from trainer.explanation.catalogue import Catalogue, Seen, item_shard
from trainer.explanation.explained import Explained, ExplainedNextItem, ExplainedRanker, score
from trainer.explanation.questions import Questions


@dataclass(frozen=True)
class TopTwo:
    """The best and the second best item of each variant."""

    items: np.ndarray
    """(M, 2) int64 ids, the best first; 0 where no item is left."""
    scores: np.ndarray
    """(M, 2) float32, minus infinity where no item is left."""

    @property
    def lead(self) -> np.ndarray:
        """Return by how much the best item leads, (M,)."""
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
class CatalogueTop(Catalogue):
    """A next-item model that chooses among all items but the viewed ones of a question."""

    @torch.no_grad()
    def best_two(self, variants: Questions, question: np.ndarray, most_events: int | None = None) -> TopTwo:
        """Return the two best items of each variant. Collective. Arguments as for `TopItems.best_two`."""
        items = np.zeros((variants.size, 2), np.int64)
        scores = np.full((variants.size, 2), -np.inf, np.float32)
        for piece, query in self.queries(variants, question, with_targets=False, most_events=most_events):
            ranked = self.rank(query, 2)
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


def catalogue_top(model: ExplainedNextItem, seen: Seen) -> CatalogueTop:
    """Return the candidates of a next-item model: all items, of which each worker holds a share. Collective.

    Args:
        model: the model.
        seen: the items that are no candidates, by question.
    """
    return CatalogueTop(model, item_shard(model), seen)
