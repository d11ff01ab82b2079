"""Greedy placement: each table goes to the ranks where it adds least step time. Tables can be removed again. Imports no torch."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.planning.costs import PHASES
from sharding.planning.options import Option
from sharding.planning.shares import Float64
from sharding.planning.topology import Topology

Places = NDArray[np.int64]
NOWHERE = np.zeros(0, np.int64)
# Tie-breaks among places that lengthen the step equally: the least busy one, then the emptiest.
LEAST_BUSY = 1e-3
EMPTIEST = 1e-6


@dataclass(frozen=True, eq=False)
class Placed:
    """An option with its places: ranks or hosts of the blocks, as in TablePlan; empty for tables on all ranks."""

    option: Option
    places: Places


class Layout:
    """The tables on every rank, with running totals that `put` and `take` update.

    step_seconds is the prediction of sharding.planning.costs if hosts are full and blocks of rows have equal sizes.
    """

    def __init__(self, topology: Topology, asking_bytes: float = 0.0) -> None:
        """Create an empty layout. `asking_bytes`: memory of every rank for its requests to all tables."""
        self.tables: dict[str, Placed] = {}
        self._num_ranks = topology.num_devices
        self._per_host = min(topology.devices_per_host, topology.num_devices)
        self._hosts = np.arange(self._num_ranks) // self._per_host
        self._capacity = float(topology.capacity_bytes)
        self._host_capacity = float(topology.host_memory)
        self._latency = topology.latency_seconds * topology.costs.latency * (self._num_ranks > 1)
        self._busy = np.zeros((len(PHASES), self._num_ranks))
        self._bytes = np.zeros(self._num_ranks)
        self._host_bytes = np.zeros(self._hosts[-1] + 1)
        self._everywhere = np.zeros(len(PHASES))
        self._everywhere_bytes = asking_bytes
        self._kinds: Counter[tuple[str, bool]] = Counter()
        self._collectives: dict[tuple[str, bool], int] = {}

    @property
    def step_seconds(self) -> float:
        shared = sum(self._collectives[kind] for kind, count in self._kinds.items() if count)
        return float(self._everywhere.sum() + self._busy.max(axis=1).sum() + shared * self._latency)

    @property
    def busiest_ranks(self) -> list[int]:
        """Return the unique slowest ranks of the phases."""
        return sorted(set(self._busy.argmax(axis=1).tolist()))

    @property
    def fits(self) -> bool:
        within = self._bytes.max() + self._everywhere_bytes <= self._capacity
        return bool(within and (self._host_bytes.max() <= self._host_capacity or not self._host_bytes.any()))

    @property
    def used_bytes(self) -> float:
        """Return the used device memory of all ranks together."""
        return float(self._bytes.sum() + self._everywhere_bytes * self._num_ranks)

    def put(self, name: str, placed: Placed) -> None:
        self.tables[name] = placed
        self._collectives[placed.option.kind] = placed.option.collectives
        self._account(placed, 1)

    def take(self, name: str) -> Placed:
        placed = self.tables.pop(name)
        self._account(placed, -1)
        return placed

    def ranks_of(self, placed: Placed) -> Places:
        """Return all ranks that hold a block, empty for tables on all ranks."""
        if placed.option.where == "hosts":
            return (placed.places[:, None] * self._per_host + np.arange(self._per_host)).ravel()
        return placed.places

    def best_places(self, option: Option) -> Places | None:
        """Return the best places for the blocks of one more table, or None if they fit nowhere."""
        if option.where == "everywhere":
            fits = self._fits(option).all() and self._host_room(option, self._per_host).all()
            return NOWHERE if fits else None
        busy = self._busy + option.block_seconds[:, None]
        if option.where == "hosts":
            busy = busy.reshape(len(PHASES), -1, self._per_host).max(axis=2)
        cost = np.maximum(busy, self._busy.max(axis=1)[:, None]).sum(axis=0) + LEAST_BUSY * busy.sum(axis=0)
        fullness = EMPTIEST * (cost.max() + 1e-12) * self._bytes / (self._capacity + 1.0)
        if option.where == "hosts":
            room = self._fits(option).reshape(-1, self._per_host).all(axis=1) & self._host_room(option, self._per_host)
            cost = np.where(room, cost + fullness.reshape(-1, self._per_host).max(axis=1), np.inf)
            return _least(cost, option.num_blocks)
        room = self._fits(option) & self._host_room(option, 1)[self._hosts]
        cost = np.where(room, cost + fullness, np.inf)
        if option.ranks is not None:
            allowed = np.zeros(self._num_ranks, bool)
            allowed[list(option.ranks)] = True
            cost = np.where(allowed, cost, np.inf)
        if option.where == "ranks of one host":
            by_host = cost.reshape(-1, self._per_host)
            host = int(np.sort(by_host, axis=1)[:, : option.num_blocks].sum(axis=1).argmin())
            places = _least(by_host[host], option.num_blocks)
            places = None if places is None else places + host * self._per_host
        else:
            places = _least(cost, option.num_blocks)
        if places is not None and option.host_bytes and not self._hosts_hold(option, places):
            return None
        return places

    def _fits(self, option: Option) -> NDArray[np.bool_]:
        """Return whether each rank has room for one more block, (W,)."""
        return self._bytes + self._everywhere_bytes + option.block_bytes <= self._capacity

    def _host_room(self, option: Option, blocks: int) -> NDArray[np.bool_]:
        """Return whether each host's memory has room for this many more blocks, (H,)."""
        return self._host_bytes + blocks * option.host_bytes <= (self._host_capacity if option.host_bytes else np.inf)

    def _hosts_hold(self, option: Option, ranks: Places) -> bool:
        blocks = np.bincount(self._hosts[ranks], minlength=self._host_bytes.size)
        return bool((self._host_bytes + blocks * option.host_bytes <= self._host_capacity).all())

    def _account(self, placed: Placed, sign: int) -> None:
        option = placed.option
        self._kinds[option.kind] += sign
        self._everywhere += sign * option.all_seconds
        if option.where == "everywhere":
            self._everywhere += sign * option.block_seconds
            self._everywhere_bytes += sign * option.block_bytes
            if option.host_bytes:
                self._host_bytes += sign * option.host_bytes * self._per_host
            return
        ranks = self.ranks_of(placed)
        self._busy[:, ranks] += sign * option.block_seconds[:, None]
        self._bytes[ranks] += sign * option.block_bytes
        if option.host_bytes:
            np.add.at(self._host_bytes, self._hosts[ranks], sign * option.host_bytes)


def _least(cost: Float64, count: int) -> Places | None:
    """Return the `count` cheapest places in ascending order, ties by place; None if too few are possible."""
    places = np.array([cost.argmin()]) if count == 1 else np.argsort(cost, kind="stable")[:count]
    return np.sort(places) if places.size == count and np.isfinite(cost[places]).all() else None
