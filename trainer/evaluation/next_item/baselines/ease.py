"""EASE: a linear item-to-item model with a closed form (Steck 2019, arXiv:1905.03375).

With X the users' training items (0 or 1), G = X'X and P = (G + REGULARISATION I)^-1, the weights are B_ij = -P_ij / P_jj, and 0 on
the diagonal. The scores of a user are x B, with x the items of the whole history. Equal scores follow the common order.

Differences from the paper: users at even distances stand for all where counting would take more than MAX_WORK multiplications,
and weights are rounded to 1 / UNITS. Sums of whole numbers are exact, so a user gets the same list in any batch, on any device.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.batches.history_batch import FIRST_ITEM
from sharding.world import World
from trainer.data.stream.held_out import HeldOutBatch
from trainer.evaluation.next_item.baselines.listed import BaselineRanks
from trainer.evaluation.next_item.baselines.order import ItemOrder
from trainer.evaluation.next_item.baselines.training_part import TrainingEvents

MAX_ITEMS = 5_000
REGULARISATION = 500.0
MAX_WORK = 10**12  # users x items^2
UNITS = 1 << 20
_PLACES = 1 << 13  # more than MAX_ITEMS: a key is score * _PLACES - place, and below 2^53
_CHUNK_ROWS = 1024
_CHUNK_TARGETS = 512
_MASKED = float("-inf")


class GramCounter:
    """Number of users that have both of two items, for every two items: G."""

    def __init__(self, num_items: int, num_rows: int, world: World) -> None:
        """Start at 0.

        Args:
            num_items: V, at most MAX_ITEMS.
            num_rows: users of the dataset.
            world: the ranks.
        """
        self.stride = max(1, -(-num_rows * num_items**2 // MAX_WORK))
        # Whole numbers below 2^24, which float32 holds exactly.
        self._gram = torch.zeros((num_items, num_items), dtype=torch.float32, device=world.device)

    def add(self, events: TrainingEvents) -> None:
        """Count the items of some rows."""
        events = events.every(self.stride)
        for start in range(0, events.row_ids.size, _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, events.row_ids.size)
            first, last = events.offsets[start], events.offsets[stop]
            items = events.items[first:last]
            rows = events.rows[first:last] - start
            known = items > 0
            chunk = torch.zeros((stop - start, self._gram.shape[0]), device=self._gram.device)
            at = [torch.from_numpy(index).to(chunk.device) for index in (rows[known], items[known] - FIRST_ITEM)]
            chunk[at[0], at[1]] = 1.0
            self._gram.addmm_(chunk.T, chunk)

    def weights(self, world: World) -> Tensor:
        """Return the weights B in units of 1 / UNITS, (V, V) float64 of whole numbers, the same on every rank. Collective."""
        gram = world.sum(self._gram).double()
        if world.is_first:
            gram.diagonal().add_(REGULARISATION)
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
            weights = inverse.div_(-inverse.diagonal()[None, :].clone())
            weights.diagonal().zero_()
            gram = weights.mul_(UNITS).round_().contiguous()  # a broadcast sends memory, and LAPACK orders it by column
        return world.from_first(gram)


class Ease:
    """EASE as a baseline."""

    name = "ease"

    def __init__(self, weights: Tensor, order: ItemOrder, description: str) -> None:
        """Keep the weights.

        Args:
            weights: (V, V) float64 of GramCounter.weights.
            order: the order of items with equal scores.
            description: what it recommends, in one sentence.
        """
        self.description = description
        self._weights = weights
        self._places = torch.from_numpy(order.places[FIRST_ITEM:].astype(np.float64)).to(weights.device)

    def rank(self, held: HeldOutBatch, masked: np.ndarray, top: int) -> BaselineRanks:
        """Rank the targets of a batch, and return the `top` best items of each user."""
        device = self._weights.device
        users = np.repeat(np.arange(held.row_ids.size), np.diff(held.seen_offsets))
        known = held.seen > 0
        size = self._weights.shape[0] + FIRST_ITEM
        pairs = np.unique(users[known] * size + held.seen[known])
        user, item = (torch.from_numpy(column).to(device) for column in np.divmod(pairs, size))
        keys = self._keys(user, item, held.row_ids.size)
        user, item = (torch.from_numpy(column).to(device) for column in np.divmod(masked, size))
        keys[user, item - FIRST_ITEM] = _MASKED
        return BaselineRanks(self._target_ranks(keys, held), self._top_items(keys, top))

    def _keys(self, user: Tensor, item: Tensor, num_users: int) -> Tensor:
        """Return a number for every user and item, (Q, V), in the order of the lists; no two of a user are equal."""
        offsets = torch.searchsorted(user, torch.arange(num_users, device=user.device))
        scores = F.embedding_bag(item - FIRST_ITEM, self._weights, offsets, mode="sum")
        return scores.mul_(_PLACES).sub_(self._places)

    def _target_ranks(self, keys: Tensor, held: HeldOutBatch) -> np.ndarray:
        known = (held.targets > 0) & (held.targets < keys.shape[1] + FIRST_ITEM)
        users = np.repeat(np.arange(keys.shape[0]), np.diff(held.target_offsets))[known]
        user, item = (torch.from_numpy(column).to(keys.device) for column in (users, held.targets[known]))
        own = keys[user, item - FIRST_ITEM]
        pieces = [
            (keys[user[start : start + _CHUNK_TARGETS]] > own[start : start + _CHUNK_TARGETS, None]).sum(dim=1)
            for start in range(0, own.numel(), _CHUNK_TARGETS)
        ]
        ahead = torch.cat(pieces) if pieces else own.long()
        ranks = np.zeros(held.targets.size, dtype=np.int64)
        ranks[known] = torch.where(own == _MASKED, 0, ahead + 1).cpu().numpy()
        return ranks

    def _top_items(self, keys: Tensor, top: int) -> np.ndarray:
        best, places = keys.topk(min(top, keys.shape[1]), dim=1)
        items = torch.where(best == _MASKED, 0, places + FIRST_ITEM)
        return F.pad(items, (0, top - items.shape[1])).cpu().numpy()
