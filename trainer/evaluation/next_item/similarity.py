"""Similarity of the items of a list, from their categories or from the users that they share. Pure numpy.

Items are unit vectors, and their similarity is a cosine in [0, 1]. For a list of n items with vectors x_i the sum over all ordered
pairs of different items is |sum x_i|^2 - sum |x_i|^2. So its cost grows with the length of the list, not with the pairs, and no
matrix of items x items is needed.

Categories: an item's vector has equal entries at its categories. The similarity of items with category sets A and B is
|A and B| / sqrt(|A| |B|) (Ochiai 1957). With one category per item it is 1 for the same category and 0 for another, so that the
distance is the Hamming distance. An item without categories is similar to none.

Users: an item's vector has equal entries at the users that have the item in their training histories. Its cosine is that of
item-to-item collaborative filtering (Sarwar et al. 2001); dividing by the lengths removes the popularity of items. Vectors are
projected at random onto DIMENSIONS dimensions (Achlioptas 2003), so similarities are estimates with an error of about
1 / sqrt(DIMENSIONS) for a pair, which mostly cancels in a mean over pairs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

DIMENSIONS = 64  # of projected vectors
_SEED = 20
_BLOCK = 1 << 21  # numbers that a block of lists may take


class Similarity(Protocol):
    """Similarity of items as the cosine of their vectors."""

    @property
    def basis(self) -> str:
        """Describe in words what the vectors are made of."""

    def sums(self, lists: np.ndarray) -> np.ndarray:
        """Return the sum of the similarities of all ordered pairs of different places of each list.

        Args:
            lists: (U, k) ids of items that differ; 0 for an empty place, which is similar to none.

        Returns:
            (U,) float64.
        """


@dataclass(frozen=True)
class CategorySimilarity:
    """Similarity of items by their categories."""

    categories: np.ndarray
    """Packed numbers of the categories of all ids, id 0 (no item) included, which has none."""
    offsets: np.ndarray
    """(num_ids + 1,) bounds in `categories`."""
    basis: str = "categories of the items"
    """What the vectors are made of, in words."""

    def sums(self, lists: np.ndarray) -> np.ndarray:
        """Return the sums of similarities (Similarity.sums)."""
        lengths = np.diff(self.offsets)
        per_list = lists.shape[1] * max(1, -(-self.categories.size // max(1, lengths.size)))
        blocks = [self._sums_of_block(block, lengths) for block in _blocks(lists, per_list)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def _sums_of_block(self, lists: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        items = lists.reshape(-1)
        count = lengths[items]
        place = (
            np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(self.offsets[items], count)
        )
        user = np.repeat(np.repeat(np.arange(lists.shape[0]), lists.shape[1]), count)
        length = np.repeat(1.0 / np.sqrt(np.maximum(count, 1)), count)
        key = user * (int(self.categories.max(initial=0)) + 1) + self.categories[place]
        order = np.argsort(key, kind="stable")
        first = np.flatnonzero(np.diff(key[order], prepend=-1))
        summed = np.add.reduceat(length[order], first) if first.size else np.zeros(0)
        squared = np.bincount(user[order][first], np.square(summed), lists.shape[0])
        sums: np.ndarray = squared - (lengths[lists] > 0).sum(axis=1)
        return sums


@dataclass(frozen=True)
class VectorSimilarity:
    """Similarity of items by projected vectors."""

    vectors: np.ndarray
    """(V, DIMENSIONS) float32 of length 1; row 0, of items without a vector, is 0."""
    rows: np.ndarray
    """(num_ids,) the row of each id, id 0 included."""
    basis: str = "users that the items share in training histories"
    """What the vectors are made of, in words."""

    def sums(self, lists: np.ndarray) -> np.ndarray:
        """Return the sums of similarities (Similarity.sums)."""
        blocks = []
        for block in _blocks(lists, lists.shape[1] * self.vectors.shape[1]):
            rows = self.rows[block]
            summed = self.vectors[rows].sum(axis=1, dtype=np.float64)
            blocks.append(np.square(summed).sum(axis=1) - (rows > 0).sum(axis=1))
        return np.concatenate(blocks) if blocks else np.zeros(0)


def similarity_of_categories(features: Iterable[tuple[np.ndarray, np.ndarray]], num_ids: int) -> CategorySimilarity:
    """Return the similarity by categories: an item's categories are the values of all features together.

    Args:
        features: of each feature (owner (n,), value (n,)): the ids of items and their values; a pair may repeat.
        num_ids: the number of ids, id 0 included.
    """
    owners, numbers, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for owner, value in features:
        unique, number = np.unique(value, return_inverse=True)
        owners.append(owner.astype(np.int64))
        numbers.append(number.reshape(-1) + first)
        first += unique.size
    pairs = np.unique(np.concatenate(owners) * max(1, first) + np.concatenate(numbers))
    owner, categories = np.divmod(pairs, max(1, first))
    offsets = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=num_ids))))
    return CategorySimilarity(categories, offsets)


def similarity_of_users(histories: Iterable[tuple[np.ndarray, np.ndarray]], num_ids: int) -> VectorSimilarity:
    """Return the similarity by shared users.

    Args:
        histories: blocks of histories of different users, as (items (n,), offsets (users + 1,)) with ids from 1 on; 0 is skipped.
        num_ids: the number of ids, id 0 included.
    """
    random = np.random.default_rng(_SEED)
    rows = np.zeros(num_ids, np.int64)
    vectors = np.zeros((1, DIMENSIONS), np.float32)
    for items, offsets in histories:
        num_users = offsets.size - 1
        signs = random.integers(0, 2, (num_users, DIMENSIONS), dtype=np.int8) * np.int8(2) - np.int8(1)
        user = np.repeat(np.arange(num_users), np.diff(offsets))
        pairs = np.unique(
            items.astype(np.int64) * max(1, num_users) + user
        )  # by item; an item that repeats counts once
        pairs = pairs[pairs >= num_users]
        item, user = np.divmod(pairs, max(1, num_users))
        new = np.unique(item[rows[item] == 0])
        rows[new] = vectors.shape[0] + np.arange(new.size)
        vectors = np.concatenate((vectors, np.zeros((new.size, DIMENSIONS), np.float32)))
        for start in range(0, item.size, _BLOCK // DIMENSIONS):
            part = item[start : start + _BLOCK // DIMENSIONS]
            first = np.flatnonzero(np.diff(part, prepend=-1))
            of_users = signs[user[start : start + part.size]].astype(np.float32)
            vectors[rows[part[first]]] += np.add.reduceat(of_users, first, axis=0)
    lengths = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return VectorSimilarity(vectors / np.maximum(lengths, 1.0), rows)


def _blocks(lists: np.ndarray, numbers_per_list: int) -> Iterator[np.ndarray]:
    """Yield the lists in blocks of bounded size."""
    step = max(1, _BLOCK // max(1, numbers_per_list))
    for start in range(0, lists.shape[0], step):
        yield lists[start : start + step]
