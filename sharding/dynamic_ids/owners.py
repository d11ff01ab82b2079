"""Owners of ids: every id belongs to one rank, which alone holds its state, and values travel between ranks by owner.

Ids are hashed, by a fixed function that is the same in every process, machine and version. A rank owns an equal interval of the
hashes, so that any ids are spread evenly, and an order by hash is one order of all ids whatever the number of ranks.

A `Route` sends values from every rank to chosen ranks, and answers back. The number of collectives does not depend on the values,
so that ranks with nothing to send take part like the others.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sharding.world import World

Int64 = NDArray[np.int64]


def hashes_of(ids: Int64) -> NDArray[np.uint64]:
    """Return the hash of each id ((N,) int64 of any value), without collisions: SplitMix64 (Steele et al. 2014)."""
    mixed = ids.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def owners_of(ids: Int64, world_size: int) -> Int64:
    """Return the rank that owns each id ((N,) int64 of any value)."""
    # The product of 32 bits of the hash and a number of ranks below 2^32 fits into 64 bits.
    return ((hashes_of(ids) >> np.uint64(32)) * np.uint64(world_size) >> np.uint64(32)).view(np.int64)


@dataclass(frozen=True)
class Route:
    """An exchange of values between all ranks, and of one answer to each of them."""

    world: World
    """All ranks."""
    order: Int64
    """(n,) places of this rank's values in the order in which they are sent."""
    sent: list[int]
    """Number of values sent to each rank."""
    received: list[int]
    """Number of values received from each rank."""

    def send(self, *columns: Int64) -> list[Int64]:
        """Send int64 columns, each (n,). Returns the received values, each (m,), by sending rank. Collective."""
        if self.world.world_size == 1:
            return list(columns)
        leaving = np.stack([column[self.order] for column in columns], axis=1)
        arrived = self._exchange(leaving.reshape(-1), self.sent, self.received, len(columns))
        return [np.ascontiguousarray(column) for column in arrived.reshape(-1, len(columns)).T]

    def answer(self, values: Int64) -> Int64:
        """Return the answers to this rank's values, (n,), of which each rank gives those to what it received, (m,). Collective."""
        if self.world.world_size == 1:
            return values
        answers = np.empty(self.order.size, np.int64)
        answers[self.order] = self._exchange(values, self.received, self.sent, 1)
        return answers

    def _exchange(self, leaving: Int64, sent: list[int], received: list[int], width: int) -> Int64:
        arrived: Int64 = (
            self.world.exchange(
                torch.from_numpy(leaving).to(self.world.device),
                [width * count for count in sent],
                [width * count for count in received],
            )
            .cpu()
            .numpy()
        )
        return arrived


def route_to(ranks: Int64, world: World) -> Route:
    """Return the route of values, of which each goes to the rank given for it, (n,). Collective."""
    if world.world_size == 1:
        return Route(world, np.arange(0), [ranks.size], [ranks.size])
    # Small integers are sorted by radix, in time proportional to their number.
    order = np.argsort(ranks.astype(np.uint16 if world.world_size <= 65_536 else np.int64), kind="stable")
    sent = np.bincount(ranks, minlength=world.world_size).tolist()
    return Route(world, order, sent, world.exchange_ints(sent))
