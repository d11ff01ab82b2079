"""Exact search: the items with the largest dot products, from vectors in float32 or in 8-bit rows, in blocks.

Items are ordered by score, and equal scores by id, as in an evaluation. Imports no TorchRec.

Shapes: B users, V items, D width, K results.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.batches.history_batch import FIRST_ITEM, as_tensor
from trainer.export.tables import dequantise

BLOCK_ITEMS = 65_536  # items that are scored at a time
EXPANDED_BYTES = 1 << 30  # 8-bit vectors are expanded to float32 in memory, once, if they take at most so much then
EXCLUDED = float("-inf")


class Vectors(Protocol):
    """The vectors of all items; entry k is that of id k + 1."""

    @property
    def num_items(self) -> int: ...

    def rows(self, index: np.ndarray | slice) -> Tensor:
        """Return the vectors (n, D) float32 of some entries."""
        ...


@dataclass(frozen=True)
class FloatVectors:
    """Vectors in float32."""

    values: np.ndarray
    """(V, D), possibly on disk."""

    @property
    def num_items(self) -> int:
        return int(self.values.shape[0])

    def rows(self, index: np.ndarray | slice) -> Tensor:
        return as_tensor(self.values[index])


@dataclass(frozen=True)
class Int8Vectors:
    """Vectors in 8-bit rows."""

    codes: np.ndarray
    """(V, D) uint8, possibly on disk."""
    steps: np.ndarray
    """(V, 2) float32, scale and offset."""

    @property
    def num_items(self) -> int:
        return int(self.codes.shape[0])

    def rows(self, index: np.ndarray | slice) -> Tensor:
        codes, steps = as_tensor(self.codes[index]), as_tensor(self.steps[index])
        return dequantise(codes, steps[..., :1], steps[..., 1:])


def expanded(vectors: Int8Vectors) -> Vectors:
    """Return 8-bit vectors in float32 if that takes little memory. Expanding them takes longer than scoring them."""
    if 4 * vectors.codes.size > EXPANDED_BYTES:
        return vectors
    return FloatVectors(vectors.rows(slice(None)).numpy())


@dataclass(frozen=True)
class Seen:
    """Items to leave out for each user."""

    items: np.ndarray
    """Packed ids."""
    offsets: np.ndarray
    """(B + 1,) bounds in `items`."""


def best_items(
    users: Tensor, vectors: Vectors, k: int, seen: Seen | None = None, candidates: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best items of each user: ids (B, K) int64, 0 where fewer are left, and scores (B, K) float32.

    Args:
        users: vectors (B, D).
        vectors: of the items.
        k: K.
        seen: items to leave out.
        candidates: (n,) ascending ids of the only items to recommend; None: all.
    """
    owner = np.zeros(0, np.int64) if seen is None else np.repeat(np.arange(users.shape[0]), np.diff(seen.offsets))
    out = np.zeros(0, np.int64) if seen is None else seen.items
    best_ids = np.zeros((users.shape[0], 0), np.int64)
    best_scores = np.zeros((users.shape[0], 0), np.float32)
    for ids in _blocks(vectors.num_items, candidates):
        whole = candidates is None
        block = vectors.rows(slice(int(ids[0]) - FIRST_ITEM, int(ids[-1])) if whole else ids - FIRST_ITEM)
        scores = (users @ block.T).nan_to_num_(nan=EXCLUDED, posinf=float("inf"), neginf=EXCLUDED).numpy()
        place = np.minimum(np.searchsorted(ids, out), ids.size - 1)
        here = ids[place] == out
        scores[owner[here], place[here]] = EXCLUDED
        ids_of_block, scores_of_block = _top(scores, ids, k)
        ids_of_both = np.concatenate((best_ids, ids_of_block), axis=1)  # ids of later blocks are larger
        scores_of_both = np.concatenate((best_scores, scores_of_block), axis=1)
        order = np.argsort(-scores_of_both, axis=1, kind="stable")[:, :k]
        best_ids, best_scores = (np.take_along_axis(part, order, axis=1) for part in (ids_of_both, scores_of_both))
    missing = ((0, 0), (0, k - best_ids.shape[1]))
    best_ids = np.pad(np.where(best_scores == EXCLUDED, 0, best_ids), missing)
    return best_ids, np.pad(best_scores, missing, constant_values=EXCLUDED)


def _blocks(num_items: int, candidates: np.ndarray | None) -> Iterator[np.ndarray]:
    ids = np.arange(FIRST_ITEM, num_items + FIRST_ITEM) if candidates is None else candidates
    for start in range(0, ids.size, BLOCK_ITEMS):
        yield ids[start : start + BLOCK_ITEMS]


def _top(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best entries of a block, in the order by score and then id."""
    count = min(k, ids.size)
    values, columns = (part.numpy() for part in torch.from_numpy(scores).topk(count, dim=1))
    # topk promises no order among equal scores. Where the last place is tied with an item left out, the whole row is sorted.
    last = values[:, -1:]
    ambiguous = np.flatnonzero((scores == last).sum(axis=1) > (values == last).sum(axis=1))
    if ambiguous.size:
        columns[ambiguous] = np.argsort(-scores[ambiguous], axis=1, kind="stable")[:, :count]
    columns = np.sort(columns, axis=1)
    values = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return ids[np.take_along_axis(columns, order, axis=1)], np.take_along_axis(values, order, axis=1)
