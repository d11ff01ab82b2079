"""Recommendations, scores and vectors of a next-item model in one process.

Shapes: B histories, K recommendations, V items of the catalogue, D model width.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from models.batches.history_batch import FIRST_ITEM
from trainer.data.stream.held_out import query_batch
from trainer.evaluation.next_item.scoring import EXCLUDED, ItemShard, Query, rank_items
from trainer.inference.candidates import Candidates
from trainer.inference.requests import Histories
from trainer.inference.trained_model import ALONE, TrainedModel

BATCH_EVENTS = 16_384  # events that are encoded at a time
LOOKUP_ITEMS = 65_536  # items that are looked up at a time
BLOCK_ITEMS = 65_536  # items that are scored at a time
BLOCK_SCORES = 1 << 24  # scores that are held at a time
NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Recommendations:
    """The best items of each history."""

    items: np.ndarray
    """(B, K) int64 ids, the best first; 0 where fewer items are left."""
    scores: np.ndarray
    """(B, K) float32; minus infinity where no item is left, and not a number for items that no score has chosen."""


def user_vectors(trained: TrainedModel, histories: Histories) -> torch.Tensor:
    """Return the vector of each history, (B, D) float32; zeros of an empty one."""
    config = trained.model.config
    vectors = torch.zeros((histories.lengths.size, trained.model.width))
    with torch.no_grad():
        for rows in _batches(histories.lengths, config.max_history):
            batch = query_batch(
                histories.packed,
                np.arange(histories.lengths.size),
                rows,
                histories.lengths[rows],
                trained.catalogue,
                config.max_history,
                config.masks_items,
            )
            batch = replace(batch, items=trained.dynamic.rows_of(batch.items))
            vectors[rows] = trained.model.user_vectors(trained.look_up(batch.items), batch)
    vectors[histories.lengths == 0] = 0.0
    return vectors


def item_vectors(trained: TrainedModel, ids: np.ndarray | None = None) -> torch.Tensor:
    """Return the vectors of items for a dot product with those of users, (n, D) float32.

    ids: (n,) int64, ascending and distinct; by default 1 .. V.
    """
    if ids is None:
        ids = np.arange(FIRST_ITEM, trained.num_items + FIRST_ITEM)
    pieces = [torch.zeros((0, trained.model.width))]
    with torch.no_grad():
        for start in range(0, ids.size, LOOKUP_ITEMS):
            request = trained.dynamic.rows_of(trained.catalogue.request(ids[start : start + LOOKUP_ITEMS]))
            pieces.append(trained.model.item_vectors(trained.look_up(request), request))
    return torch.cat(pieces)


def recommend(
    trained: TrainedModel,
    histories: Histories,
    vectors: torch.Tensor,
    k: int,
    filter_viewed: bool,
    candidates: Candidates | None = None,
) -> Recommendations:
    """Return the best items of each history. Equal scores are ordered by id, as in evaluation.

    A history without events gets the most popular items of the training part, with scores that are not numbers.

    Args:
        trained: the model.
        histories: the histories.
        vectors: of all items, (V, D), as `item_vectors` returns them.
        k: the number of items.
        filter_viewed: whether to leave out the items of the history.
        candidates: the only items to recommend; by default all.
    """
    seen, offsets = histories.seen()
    users = user_vectors(trained, histories)
    return best_for(trained, users, seen, offsets, vectors, k, filter_viewed, candidates)


def best_for(
    trained: TrainedModel,
    users: torch.Tensor,
    seen: np.ndarray,
    offsets: np.ndarray,
    vectors: torch.Tensor,
    k: int,
    filter_viewed: bool,
    candidates: Candidates | None = None,
) -> Recommendations:
    """Return the best items for given vectors of users.

    Args:
        trained: the model.
        users: (B, D) vectors.
        seen: packed ids of the items of each history.
        offsets: (B + 1,) bounds in `seen`. A history without items gets the popular ones.
        vectors: as for `recommend`.
        k: as for `recommend`.
        filter_viewed: as for `recommend`.
        candidates: as for `recommend`.
    """
    candidates = candidates or Candidates(trained.num_items)
    shard = vectors if candidates.some is None else vectors[candidates.some - FIRST_ITEM]
    best = _best(users, candidates.numbers_of(seen), offsets, shard, k, filter_viewed)
    best = Recommendations(candidates.ids_of(best.items), best.scores)
    cold = np.diff(offsets) == 0
    if not cold.any():  # the most popular of all items take longer to find than the best ones of a single history
        return best
    return with_popular(best, cold, candidates.most_popular(trained.train_events, k))


def with_popular(best: Recommendations, cold: np.ndarray, popular: np.ndarray) -> Recommendations:
    """Return lists in which the `cold` ones (B,) are the popular items, at most K, with scores that are not numbers."""
    if not cold.any():
        return best
    items, scores = best.items.copy(), best.scores.copy()
    items[cold] = 0
    items[cold, : popular.size] = popular
    scores[cold] = np.nan
    return Recommendations(items, scores)


def score(trained: TrainedModel, histories: Histories, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the score of pairs of a history and an item, (n,) float32; NaN for an item without an id, or without events.

    Args:
        trained: the model.
        histories: the histories.
        rows: (n,) number of the history of each pair.
        ids: (n,) item ids; 0 is an unknown item.
    """
    known = np.flatnonzero((ids >= FIRST_ITEM) & (histories.lengths[rows] > 0))
    distinct, place = np.unique(ids[known], return_inverse=True)
    scores = np.full(ids.size, np.nan, np.float32)
    users = user_vectors(trained, histories)
    items = item_vectors(trained, distinct)
    for start in range(0, known.size, LOOKUP_ITEMS):
        part = slice(start, start + LOOKUP_ITEMS)
        pairs = users[rows[known[part]]] * items[place[part]]
        scores[known[part]] = pairs.sum(dim=1).numpy()
    return scores


def similar_items(ids: np.ndarray, vectors: torch.Tensor, k: int) -> Recommendations:
    """Return the items with the most similar vectors by cosine, without the item itself.

    Args:
        ids: (B,) items.
        vectors: of all items, (V, D).
        k: the number of items.
    """
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return _best(unit[ids - FIRST_ITEM], ids, np.arange(ids.size + 1), unit, k, True)


def _best(
    users: torch.Tensor, seen: np.ndarray, offsets: np.ndarray, items: torch.Tensor, k: int, filter_viewed: bool
) -> Recommendations:
    """Return the best items for each of (B, D) vectors, a bounded number of scores at a time.

    Args:
        users: (B, D) vectors.
        seen: packed numbers, from 1, of the items that may be left out.
        offsets: (B + 1,) bounds in `seen`.
        items: (n, D) vectors of the items.
        k: the number of items.
        filter_viewed: whether to leave out `seen`.
    """
    num_users = offsets.size - 1
    top = min(k, items.shape[0])
    best = Recommendations(np.zeros((num_users, top), np.int64), np.full((num_users, top), EXCLUDED, np.float32))
    shard = ItemShard(items, FIRST_ITEM)
    step = max(1, BLOCK_SCORES // max(1, min(items.shape[0], BLOCK_ITEMS)))
    for start in range(0, num_users if top else 0, step):
        part = slice(start, min(start + step, num_users))
        bounds = offsets[part.start : part.stop + 1]
        nothing = np.zeros(bounds.size, np.int64)
        query = Query(users[part], seen[bounds[0] : bounds[-1]], bounds - bounds[0], NOTHING, nothing)
        ranked = rank_items(query, shard, top, filter_viewed, BLOCK_ITEMS, ALONE)
        best.items[part], best.scores[part] = ranked.top_items, ranked.top_scores
    return best


def _batches(lengths: np.ndarray, max_history: int) -> list[np.ndarray]:
    """Return the rows of each batch: by length, so that little is padded, with about BATCH_EVENTS events each."""
    kept = np.minimum(lengths, max_history)
    order = np.argsort(kept, kind="stable")
    order = order[kept[order] > 0]
    number = np.cumsum(kept[order]) // BATCH_EVENTS
    return np.split(order, np.flatnonzero(np.diff(number)) + 1) if order.size else []
