"""Scores of users against items, a tile of users x items at a time.

On a CPU a tile fits its caches, so that everything that is derived from scores costs little next to the product that makes them.
The next tile overwrites the last. Shapes: B users, V local items, D width, S pairs of a user and an item.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

EXCLUDED = float("-inf")
# Scores and users of a tile on a CPU, at most. Smaller tiles fit a cache better, but a tile costs some hundred calls of torch.
TILE_SCORES = 1 << 21
TILE_USERS = 256
GROUPS_OF = 16  # the width of a tile is a multiple of this


class Items(Protocol):
    """V items to score, of the ids first_id .. first_id + V - 1."""

    @property
    def first_id(self) -> int:
        """Return the smallest id."""

    @property
    def num_items(self) -> int:
        """Return V."""

    @property
    def largest(self) -> float:
        """Return a bound of the absolute values of the vectors; infinity or NaN if none is known."""

    @property
    def available_from(self) -> Tensor | None:
        """Return the first moment at which each item is a candidate, (V,) int64; None: always."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the vectors (stop - start, D) of some items, counted from 0."""


@dataclass(frozen=True)
class ItemShard:
    """The items that this worker scores."""

    vectors: Tensor
    """(V, D) of ids first_id .. first_id + V - 1."""
    first_id: int
    """The smallest id."""
    available_from: Tensor | None = None
    """(V,) int64, the first moment at which each item is a candidate; None: always."""

    @property
    def num_items(self) -> int:
        """Return the number of items."""
        return self.vectors.shape[0]

    @cached_property
    def largest(self) -> float:
        """Return the largest absolute value of the vectors; NaN if one is not a number."""
        return largest_of(self.vectors)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the vectors of some items, counted from 0."""
        return self.vectors[start:stop].detach()


@dataclass(frozen=True)
class Tile:
    """The scores of some users for some items."""

    users: slice
    """The users."""
    first_id: int
    """The smallest id of the items."""
    num_items: int
    """The number of items v."""
    scores: Tensor
    """(users, width) with the items left out at minus infinity. The columns from v on are padding, at minus infinity too."""


@dataclass(frozen=True)
class ScoreTiles:
    """All scores of users against a shard, as tiles in ascending order of their items."""

    users: Tensor
    """(B, D) vectors."""
    left_out: Tensor
    """(S, 2) pairs of a user's number and an id, of items to leave out. Other ids than those of `items` are ignored."""
    items: Items
    """The items."""
    block_items: int
    """The largest number of items of a tile."""
    moments: Tensor | None = None
    """(B,) int64, the moment of each user, for items with `available_from`."""

    def __iter__(self) -> Iterator[Tile]:
        users = self.users.detach()
        groups = self.groups()
        num_items = self.items.num_items
        if not groups or not num_items:
            return
        width = self._width(groups[0].stop)
        places, bounds = self._places(groups[0].stop, len(groups), width)
        buffer = users.new_empty(groups[0].stop * width)
        can_be_nan = self._can_be_nan()
        for number, start in enumerate(range(0, num_items, width)):
            items = self.items.rows(start, min(start + width, num_items))
            stride = -(-items.shape[0] // GROUPS_OF) * GROUPS_OF
            for group, rows in enumerate(groups):
                size = rows.stop - rows.start
                scores = buffer[: size * stride].view(size, stride)
                torch.mm(users[rows], items.T, out=scores[:, : items.shape[0]])
                scores[:, items.shape[0] :] = EXCLUDED
                if can_be_nan:
                    # A comparison with a score that is not a number is always false, which would put its item first.
                    scores.nan_to_num_(nan=EXCLUDED, posinf=float("inf"), neginf=EXCLUDED)
                self._leave_out_unavailable(scores[:, : items.shape[0]], rows, start)
                of_tile = places[slice(*bounds[number * len(groups) + group : number * len(groups) + group + 2])]
                scores.view(-1)[of_tile] = EXCLUDED
                yield Tile(rows, self.items.first_id + start, items.shape[0], scores)

    def _leave_out_unavailable(self, scores: Tensor, rows: slice, start: int) -> None:
        """Set the scores of items that are no candidates at the users' moments to minus infinity."""
        if self.items.available_from is not None:
            assert self.moments is not None
            since = self.items.available_from[start : start + scores.shape[1]]
            scores.masked_fill_(since[None, :] > self.moments[rows, None], EXCLUDED)

    def groups(self) -> list[slice]:
        """Return the users of the tiles of the same items, in groups of about equal size."""
        num_users = self.users.shape[0]
        num_groups = -(-num_users // TILE_USERS) if self.users.device.type == "cpu" else min(1, num_users)
        size = -(-num_users // max(1, num_groups))
        return [slice(start, min(start + size, num_users)) for start in range(0, num_users, max(1, size))]

    def _width(self, num_users: int) -> int:
        """Return the number of items of a tile, a multiple of GROUPS_OF. All tiles but the last have as many."""
        width = self.block_items
        if self.users.device.type == "cpu":
            width = min(width, TILE_SCORES // num_users)
        most = max(1, width // GROUPS_OF) * GROUPS_OF
        num_tiles = -(-self.items.num_items // most)
        even = -(-self.items.num_items // num_tiles)
        return -(-even // GROUPS_OF) * GROUPS_OF

    def _places(self, group_size: int, num_groups: int, width: int) -> tuple[Tensor, list[int]]:
        """Return the flat places of the items to leave out in their tiles, tile by tile, and where those of each tile begin."""
        num_items = self.items.num_items
        user, item = self.left_out.unbind(dim=1)
        item = item - self.items.first_id
        here = (item >= 0) & (item < num_items)
        user, item = user[here], item[here]
        tile = item // width * num_groups + user // group_size
        num_tiles = -(-num_items // width) * num_groups
        order = _order_of(tile, num_tiles)
        # The last tile is narrower than the others.
        last_start = (num_items - 1) // width * width
        last_stride = -(-(num_items - last_start) // GROUPS_OF) * GROUPS_OF
        stride = torch.where(item >= last_start, last_stride, width)
        places = (user % group_size * stride + item % width)[order]
        bounds = torch.searchsorted(tile[order], torch.arange(num_tiles + 1, device=tile.device))
        return places, bounds.tolist()

    def _can_be_nan(self) -> bool:
        """Return whether a score can be no number. Sums of products that stay finite cannot."""
        bound = self.users.shape[1] * largest_of(self.users) * self.items.largest
        return not bound < torch.finfo(self.users.dtype).max / 2


def largest_of(values: Tensor) -> float:
    """Return the largest absolute value, 0 without values, NaN if one is not a number."""
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values.detach())
    return float(torch.maximum(-low, high))


def _order_of(tile: Tensor, num_tiles: int) -> Tensor:
    """Return the order of the numbers of tiles, (S,) int64; equal numbers keep theirs."""
    if tile.device.type == "cpu" and num_tiles <= np.iinfo(np.uint16).max:
        return torch.from_numpy(np.argsort(tile.numpy().astype(np.uint16), kind="stable"))  # a radix sort
    return tile.argsort(stable=True)
