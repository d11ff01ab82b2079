"""Candidates of a next-item model for many variants of histories: all items but the viewed ones of each history.

The viewed items stay those of the whole history, so removing an event does not make its item a candidate.

Shapes: B questions, M variants of them, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.batches.history_batch import FIRST_ITEM
from sharding.world import World
from trainer.data.stream.columns import gather
from trainer.evaluation.next_item.scoring import Query, Ranked, rank_items
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, ExplainedNextItem, pieces
from trainer.explanation.questions import Questions
from trainer.item_search.score_tiles import ItemShard

BLOCK_ITEMS = 65_536  # items that are scored at a time
LOOKUP_ITEMS = 65_536  # items that are looked up at a time


@dataclass(frozen=True)
class Seen:
    """Viewed items of the whole histories of B questions, which are no candidates."""

    items: np.ndarray
    """Packed int64 ids."""
    offsets: np.ndarray
    """(B + 1,) int64 bounds."""

    def of(self, question: np.ndarray) -> "Seen":
        """Return the items of some questions, (M,); a question can be taken several times."""
        return Seen(*gather(self.items, self.offsets[question], self.offsets[question + 1]))


@dataclass(frozen=True)
class Catalogue:
    """A next-item model with the vectors of its items."""

    model: ExplainedNextItem
    """The model."""
    shard: ItemShard
    """Vectors of the items of this worker."""
    seen: Seen
    """Items that are no candidates, by question."""

    @property
    def world(self) -> World:
        """Return the workers."""
        return self.model.tables.world

    def queries(
        self, variants: Questions, question: np.ndarray, with_targets: bool, most_events: int | None = None
    ) -> Iterator[tuple[slice, Query]]:
        """Yield queries piece by piece, as many pieces on every worker, each with its variants. Collective.

        Args:
            variants: M variants of questions.
            question: (M,) int64, number of the question of each variant.
            with_targets: whether the targets of the variants are ranked.
            most_events: number of events that are encoded at a time.
        """
        for piece in pieces(variants.lengths, most_events or INTERNAL_BATCH_EVENTS, self.model):
            part = variants.part(piece.start, piece.stop)
            seen = self.seen.of(question[piece])
            targets = part.targets if with_targets else part.targets[:0]
            bounds = np.arange(part.size + 1) if with_targets else np.zeros(part.size + 1, np.int64)
            yield piece, Query(self._users(part), seen.items, seen.offsets, targets, bounds)

    def rank(self, query: Query, number: int) -> Ranked:
        """Return the best items of each query, and the ranks of its targets. Collective.

        Args:
            query: the queries of this worker.
            number: the number of items.
        """
        return rank_items(query, self.shard, number, True, BLOCK_ITEMS, self.world)

    def _users(self, asked: Questions) -> Tensor:
        prepared = self.model.prepare(asked)
        return self.model.user_vectors(prepared, self.model.vectors(prepared))


def item_shard(model: ExplainedNextItem) -> ItemShard:
    """Return the vectors of this worker's share of the items. Collective."""
    world, number = model.tables.world, model.trained.num_items
    share = -(-number // world.world_size)
    ids = np.arange(FIRST_ITEM, number + FIRST_ITEM)[world.rank * share : (world.rank + 1) * share]
    vectors = [
        model.item_vectors(ids[start : min(start + LOOKUP_ITEMS, share)]) for start in range(0, share, LOOKUP_ITEMS)
    ]
    return ItemShard(torch.cat(vectors), min(world.rank * share, number) + FIRST_ITEM)
