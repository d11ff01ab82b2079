"""Recommendations, scores and vectors of a next-item model in one process.

Shapes: B histories, K recommendations, V items of the catalogue, D model width.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from models.batches.history_batch import FIRST_ITEM
from trainer.data.stream.held_out import query_batch
from trainer.evaluation.next_item.scoring import ItemShard, Query, rank_items
from trainer.inference.requests import Histories
from trainer.inference.trained_model import ALONE, TrainedModel

BATCH_EVENTS = 16_384  # events that are encoded at a time
LOOKUP_ITEMS = 65_536  # items that are looked up at a time
BLOCK_ITEMS = 65_536  # items that are scored at a time


@dataclass(frozen=True)
class Recommendations:
    """The best items of each history."""

    items: np.ndarray
    """(B, K) int64 ids, the best first; 0 where fewer items are left."""
    scores: np.ndarray
    """(B, K) float32; minus infinity where no item is left."""


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
    candidates: np.ndarray | None = None,
) -> Recommendations:
    """Return the best items of each history. Equal scores are ordered by id, as in evaluation.

    Args:
        trained: the model.
        histories: the histories.
        vectors: of all items, (V, D), as `item_vectors` returns them.
        k: the number of items.
        filter_viewed: whether to leave out the items of the history.
        candidates: (n,) ids of the only items to recommend, ascending; by default all.
    """
    seen, seen_offsets = histories.seen()
    nothing = np.zeros(0, np.int64)
    ids = candidates
    if ids is not None:  # candidates are numbered from 1 on, which keeps their order
        vectors = vectors[ids - FIRST_ITEM]
        place = np.searchsorted(ids, seen)
        found = ids[np.minimum(place, ids.size - 1)] == seen
        seen = np.where(found, place + FIRST_ITEM, 0)
    shard = ItemShard(vectors, FIRST_ITEM)
    query = Query(
        user_vectors(trained, histories), seen, seen_offsets, nothing, np.zeros(histories.lengths.size + 1, np.int64)
    )
    ranked = rank_items(query, shard, k, filter_viewed, BLOCK_ITEMS, ALONE)
    items = ranked.top_items
    if ids is not None:
        items = np.where(items > 0, ids[np.maximum(items - FIRST_ITEM, 0)], 0)
    return Recommendations(items, ranked.top_scores)


def score(trained: TrainedModel, histories: Histories, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the score of pairs of a history and an item, (n,) float32; NaN for an item without an id.

    Args:
        trained: the model.
        histories: the histories.
        rows: (n,) number of the history of each pair.
        ids: (n,) item ids; 0 is an unknown item.
    """
    distinct, place = np.unique(ids[ids >= FIRST_ITEM], return_inverse=True)
    scores = np.full(ids.size, np.nan, np.float32)
    users = user_vectors(trained, histories)
    items = item_vectors(trained, distinct)
    known = np.flatnonzero(ids >= FIRST_ITEM)
    for start in range(0, known.size, LOOKUP_ITEMS):
        part = slice(start, start + LOOKUP_ITEMS)
        pairs = users[rows[known[part]]] * items[place[part]]
        scores[known[part]] = pairs.sum(dim=1).numpy()
    return scores


def similar_items(trained: TrainedModel, ids: np.ndarray, vectors: torch.Tensor, k: int) -> Recommendations:
    """Return the items with the most similar vectors by cosine, without the item itself.

    Args:
        trained: the model.
        ids: (B,) items.
        vectors: of all items, (V, D).
        k: the number of items.
    """
    unit = torch.nn.functional.normalize(vectors, dim=1)
    nothing = np.zeros(0, np.int64)
    offsets = np.arange(ids.size + 1)
    query = Query(unit[ids - FIRST_ITEM], ids, offsets, nothing, np.zeros(ids.size + 1, np.int64))
    ranked = rank_items(query, ItemShard(unit, FIRST_ITEM), k, True, BLOCK_ITEMS, ALONE)
    return Recommendations(ranked.top_items, ranked.top_scores)


def _batches(lengths: np.ndarray, max_history: int) -> list[np.ndarray]:
    """Return the rows of each batch: by length, so that little is padded, with about BATCH_EVENTS events each."""
    kept = np.minimum(lengths, max_history)
    order = np.argsort(kept, kind="stable")
    order = order[kept[order] > 0]
    number = np.cumsum(kept[order]) // BATCH_EVENTS
    return np.split(order, np.flatnonzero(np.diff(number)) + 1) if order.size else []


def values_of(trained: TrainedModel, ids: np.ndarray) -> pa.Array:
    """Return items as in the logs by id; null for id 0."""
    return trained.item_values.take(pa.array(ids - FIRST_ITEM, mask=ids < FIRST_ITEM))
