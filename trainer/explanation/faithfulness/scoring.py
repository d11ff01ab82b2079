"""Places and probabilities of explained items, for many variants of histories at a time.

For a next-item model the candidates are those of trainer.explanation.catalogue, as in an evaluation that masks seen items. A place
is exact (trainer.evaluation.next_item.scoring), and the probability is the softmax of the scores over the candidates. A ranker has
a probability, the sigmoid of a logit, and no place.

Shapes: B questions, M variants of them, V local items, D width.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sharding.world import World
from trainer.evaluation.next_item.scoring import Query, Ranked
from trainer.explanation.catalogue import BLOCK_ITEMS, Catalogue, Seen, item_shard
from trainer.explanation.explained import INTERNAL_BATCH_EVENTS, Explained, ExplainedNextItem, ExplainedRanker, pieces
from trainer.explanation.questions import Questions
from trainer.item_search.score_tiles import EXCLUDED, ItemShard, ScoreTiles


@dataclass(frozen=True)
class Scored:
    """Places and probabilities of the targets of M variants."""

    places: np.ndarray | None
    """(M,) int64, place of the target among the candidates, from 1; None for rankers."""
    probabilities: np.ndarray
    """(M,) float64, probability of the target."""


class Scorer(Protocol):
    """A model that is measured."""

    @property
    def model(self) -> Explained:
        """The model."""

    def score(self, variants: Questions, history: np.ndarray) -> Scored:
        """Return the places and probabilities of the targets. Collective.

        Args:
            variants: M variants of questions.
            history: (M,) int64, number of the question of each variant.
        """


@dataclass(frozen=True)
class CatalogueScorer(Catalogue):
    """A next-item model that is measured."""

    @torch.no_grad()
    def score(self, variants: Questions, history: np.ndarray) -> Scored:
        """Return the places and probabilities of the targets. Collective. Arguments as for `Scorer.score`."""
        places = np.zeros(variants.size, np.int64)
        probabilities = np.zeros(variants.size)
        for piece, query in self.queries(variants, history, with_targets=True):
            places[piece] = self.rank(query, 0).target_ranks
            probabilities[piece] = probabilities_of(query, self.shard, self.world)
        return Scored(places, probabilities)

    @torch.no_grad()
    def top(self, asked: Questions, number: int = 1) -> Ranked:
        """Return the best items of each question, without its seen items. Collective."""
        vectors = [torch.zeros((0, self.shard.vectors.shape[1]), device=self.world.device)]
        for _, query in self.queries(asked, np.arange(asked.size), with_targets=False):
            vectors.append(query.user_vectors)
        none = np.zeros(asked.size + 1, np.int64)
        return self.rank(Query(torch.cat(vectors), self.seen.items, self.seen.offsets, none[:0], none), number)


@dataclass(frozen=True)
class RankerScorer:
    """A ranker, of which one label is explained."""

    model: ExplainedRanker
    """The model."""

    @torch.no_grad()
    def score(self, variants: Questions, history: np.ndarray) -> Scored:
        """Return the probabilities of the targets. Collective. Arguments as for `Scorer.score`."""
        probabilities = np.zeros(variants.size)
        for piece in pieces(variants.lengths, INTERNAL_BATCH_EVENTS, self.model):
            prepared = self.model.prepare(variants.take(np.arange(piece.start, piece.stop)))
            logits = self.model.scores(prepared, self.model.vectors(prepared))
            probabilities[piece] = torch.sigmoid(logits.double()).cpu().numpy()
        return Scored(None, probabilities)


def whole_catalogue(model: ExplainedNextItem, seen: Seen) -> CatalogueScorer:
    """Return the scorer of a model with whole tables in this process.

    seen: the items that are no candidates, by question.
    """
    return CatalogueScorer(model, item_shard(model), seen)


def probabilities_of(query: Query, shard: ItemShard, world: World) -> np.ndarray:
    """Return the softmax probability of the target of each user among its candidates, (Q,) float64. Collective.

    Args:
        query: this worker's users, with one target each.
        shard: this worker's items.
        world: the workers.
    """
    counts = world.gather_ints(query.user_vectors.shape[0])
    first = sum(counts[: world.rank])
    owner = np.repeat(np.arange(query.seen_offsets.size - 1), np.diff(query.seen_offsets))
    users = torch.cat(world.gather(query.user_vectors))
    own = np.arange(query.targets.size)
    seen, target = (
        torch.cat(world.gather(torch.from_numpy(np.stack((rows + first, items), axis=1)).to(world.device)))
        for rows, items in ((owner, query.seen), (own, query.targets))
    )
    largest = users.new_full((users.shape[0],), EXCLUDED)
    scores = users.new_full((users.shape[0],), EXCLUDED)
    total = users.new_zeros(users.shape[0], dtype=torch.float64)
    item = target[:, 1]
    for tile in ScoreTiles(users, seen, shard, BLOCK_ITEMS):
        rows = tile.users
        before = largest[rows]
        now = torch.maximum(before, tile.scores.amax(dim=1))
        base = now.masked_fill(now == EXCLUDED, 0.0)
        # Sums of a tile are single precision, sums of tiles are not.
        total[rows] = total[rows] * (before - base).exp().double() + (tile.scores - base[:, None]).exp().sum(1).double()
        largest[rows] = now
        column = item[rows] - tile.first_id
        here = ((column >= 0) & (column < tile.num_items)).nonzero().flatten()
        scores[rows][here] = tile.scores[here, column[here]]
    highest = world.max(largest.clone())  # in place, and each worker needs its own below
    shift = torch.where(highest == EXCLUDED, 0.0, highest)
    scale = torch.where(largest == EXCLUDED, 0.0, (largest - shift).exp().double())
    everything = world.sum(total * scale)
    logs = (world.max(scores) - shift).double() - everything.log()
    mine = logs.exp()[first : first + query.targets.size]
    return mine.cpu().numpy()
