"""Streaming estimate of how often each item is a target, updated during training.

Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations" (RecSys 2019, algorithm 2) keep for
every item the time A at which it was last seen, and a moving average B of the gaps between its occurrences. Its frequency is 1 / B:

    B <- (1 - a) B + a (t - A),   A <- t

Deviations from the paper: the arrays are indexed by item, since the catalogue is known, so nothing collides. t counts targets, not
steps, so that 1 / B is the probability of a single draw also for items that every batch contains. The c occurrences of an item in
one batch share its gap evenly, and weigh as much as c updates. Until an item was seen 1 / a times, its gaps are averaged with equal
weights, so that the initial value does not matter. An item that was never seen is assumed to be as frequent as the average item.

Each rank holds every W-th item of W ranks, by the item's number modulo W. Numbers are drawn from the catalogue without gaps, so
these parts are equal, also in the traffic of popular items next to each other. The arithmetic of an item is the same wherever it is
held, so the estimate is the same at every world size.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharding.dynamic_ids.block_tensors import Blocks
from sharding.dynamic_ids.id_counts import IdCounts, sum_counts
from sharding.dynamic_ids.owners import route_to
from sharding.world import ALONE, World

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


class TargetFrequency:
    """The estimate, 24 bytes per id, divided over ranks.

    num_ids: Ids are below it, and 0 is never a target. rate: a in the formula above. world: all ranks, for CPU tensors.
    """

    def __init__(self, num_ids: int, rate: float, world: World = ALONE) -> None:
        self._rate = rate
        self._num_ids = num_ids
        self._world = world
        size = len(range(world.rank, num_ids, world.world_size))
        self._gaps = np.full(size, max(1.0, num_ids - 1.0))
        self._last_seen = np.zeros(size, np.int64)
        self._num_seen = np.zeros(size, np.int64)
        self._num_targets = 0

    @property
    def num_bytes(self) -> int:
        """Return the memory of this rank's part."""
        return self._gaps.nbytes + self._last_seen.nbytes + self._num_seen.nbytes

    def observe(self, targets: IdCounts, ids: Int64) -> Float64:
        """Update the estimate with the targets of a global batch, and return the shares of ids after that. Collective.

        Args:
            targets: The targets of this rank's share of the batch.
            ids: (N,) ids, repeats allowed.

        Returns:
            The estimated share of each id in all targets, (N,). The shares of all ids need not sum to one.
        """
        world = self._world
        num_targets = sum(world.gather_ints(int(targets.counts.sum())))
        sent = np.concatenate((ids, targets.ids))
        route = route_to(sent % world.world_size, world)
        asked, counts = route.send(sent, np.concatenate((np.zeros(ids.size, np.int64), targets.counts)))
        is_target = counts > 0
        self._update(sum_counts(asked[is_target], counts[is_target]), num_targets)
        # The answers are sent as the integers that have the same bits.
        shares = (1.0 / self._gaps[asked // world.world_size]).view(np.int64)
        return route.answer(shares)[: ids.size].view(np.float64)

    def _update(self, targets: IdCounts, num_targets: int) -> None:
        """Update the estimate of this rank's items with their targets in a global batch of `num_targets`."""
        ids = targets.ids // self._world.world_size
        counts = targets.counts
        self._num_targets += num_targets
        gaps = (self._num_targets - self._last_seen[ids]) / counts
        self._num_seen[ids] += counts
        weights = np.maximum(1.0 - (1.0 - self._rate) ** counts, counts / self._num_seen[ids])
        self._gaps[ids] += weights * (gaps - self._gaps[ids])
        self._last_seen[ids] = self._num_targets

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, for a checkpoint, in blocks over ranks. Collective."""
        blocks = Blocks(self._num_ids, self._world)
        own = np.arange(self._world.rank, self._num_ids, self._world.world_size, dtype=np.int64)
        gaps, last_seen, num_seen = blocks.collect(own, (self._gaps.view(np.int64), self._last_seen, self._num_seen))
        return {
            "gaps": blocks.tensor(gaps.view(np.float64)),
            "last_seen": blocks.tensor(last_seen),
            "num_seen": blocks.tensor(num_seen),
            "num_targets": torch.tensor([self._num_targets]),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, also that of another number of ranks, or an undivided one. Collective."""
        blocks = Blocks(self._num_ids, self._world)
        ids = np.arange(*blocks.own_bounds, dtype=np.int64)
        gaps, last_seen, num_seen = (blocks.block_of(tensors[name]) for name in ("gaps", "last_seen", "num_seen"))
        route = route_to(ids % self._world.world_size, self._world)
        arrived, gap_bits, last_seen, num_seen = route.send(ids, gaps.view(np.int64), last_seen, num_seen)
        places = arrived // self._world.world_size
        self._gaps[places] = gap_bits.view(np.float64)
        self._last_seen[places] = last_seen
        self._num_seen[places] = num_seen
        self._num_targets = int(tensors["num_targets"].item())
