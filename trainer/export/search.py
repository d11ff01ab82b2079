"""Exact search in an export: the items with the largest dot products, from vectors in float32 or in 8-bit rows.

The search itself is that of evaluations (trainer.item_search). Imports no TorchRec.

Shapes: B users, V items, D width, K results.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.batches.history_batch import FIRST_ITEM, as_tensor
from trainer.export.tables import dequantise
from trainer.item_search.score_tiles import EXCLUDED, ScoreTiles
from trainer.item_search.top_lists import Best, TopLists

BLOCK_ITEMS = 65_536  # items that are scored at a time
EXPANDED_BYTES = 1 << 30  # 8-bit vectors are expanded to float32 in memory, once, if they take at most so much then


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


@dataclass(frozen=True)
class _Searched:
    """Stored items to score: all, or candidates. They are numbered from 1 on, in the order of their ids."""

    vectors: Vectors
    """The vectors of all items."""
    candidates: np.ndarray | None
    """(n,) ascending ids; None: all."""
    first_id: int = FIRST_ITEM
    largest: float = float("inf")  # unknown: to look for it would take as long as scores of a user
    available_from: Tensor | None = None

    @property
    def num_items(self) -> int:
        """Return the number of items to score."""
        return self.vectors.num_items if self.candidates is None else self.candidates.size

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the vectors of some items, counted from 0."""
        part = slice(start, stop)
        return self.vectors.rows(part if self.candidates is None else self.candidates[part] - FIRST_ITEM)

    def numbers_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the numbers of ids; 0 for those that are not scored."""
        if self.candidates is None:
            return ids
        place = np.minimum(np.searchsorted(self.candidates, ids), self.candidates.size - 1)
        return np.where(self.candidates[place] == ids, place + FIRST_ITEM, 0)

    def ids_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the ids of numbers; 0 for 0."""
        return numbers if self.candidates is None else np.append(0, self.candidates)[numbers]


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
    searched = _Searched(vectors, candidates)
    seen = seen or Seen(np.zeros(0, np.int64), np.zeros(users.shape[0] + 1, np.int64))
    if not searched.num_items:
        return np.zeros((users.shape[0], k), np.int64), np.full((users.shape[0], k), EXCLUDED, np.float32)
    owner = np.repeat(np.arange(users.shape[0]), np.diff(seen.offsets))
    left_out = torch.from_numpy(np.stack((owner, searched.numbers_of(seen.items)), axis=1).astype(np.int64))
    lists = TopLists(users.shape[0], k, users)
    for tile in ScoreTiles(users, left_out, searched, BLOCK_ITEMS):
        lists.add(tile)
    best = Best.of(lists.finished())
    return searched.ids_of(best.ids.numpy()), best.scores.numpy()
