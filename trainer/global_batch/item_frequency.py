"""Streaming estimate of how often each item is a target, updated during training.

Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations" (RecSys 2019, algorithm 2) keep for
every item the time A at which it was last seen, and a moving average B of the gaps between its occurrences. Its frequency is 1 / B:

    B <- (1 - a) B + a (t - A),   A <- t

Deviations from the paper: the arrays are indexed by item, since the catalogue is known, so nothing collides. t counts targets, not
steps, so that 1 / B is the probability of a single draw also for items that every batch contains. The c occurrences of an item in
one batch share its gap evenly, and weigh as much as c updates. Until an item was seen 1 / a times, its gaps are averaged with equal
weights, so that the initial value does not matter. An item that was never seen is assumed to be as frequent as the average item.

All ranks hold the whole state and observe the same global batches, so they agree, at every world size.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharding.dynamic_ids.id_counts import IdCounts


class TargetFrequency:
    """The estimate for all items, 24 bytes per id.

    num_ids: Ids are below it, and 0 is never a target. rate: a in the formula above.
    """

    def __init__(self, num_ids: int, rate: float) -> None:
        self._rate = rate
        self._gaps = np.full(num_ids, max(1.0, num_ids - 1.0))
        self._last_seen = np.zeros(num_ids, np.int64)
        self._num_seen = np.zeros(num_ids, np.int64)
        self._num_targets = 0

    def observe(self, targets: IdCounts) -> None:
        """Update the estimate with the targets of a global batch."""
        ids = targets.ids
        counts = targets.counts
        self._num_targets += int(counts.sum())
        gaps = (self._num_targets - self._last_seen[ids]) / counts
        self._num_seen[ids] += counts
        weights = np.maximum(1.0 - (1.0 - self._rate) ** counts, counts / self._num_seen[ids])
        self._gaps[ids] += weights * (gaps - self._gaps[ids])
        self._last_seen[ids] = self._num_targets

    def share_of(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the estimated share of each id in all targets. The estimates of all ids need not sum to one."""
        return 1.0 / self._gaps[ids]

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, for a checkpoint. It shares memory, except for the number of targets."""
        arrays = {"gaps": self._gaps, "last_seen": self._last_seen, "num_seen": self._num_seen}
        number = {"num_targets": torch.tensor([self._num_targets])}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | number

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        self._gaps = tensors["gaps"].cpu().numpy().copy()
        self._last_seen = tensors["last_seen"].cpu().numpy().copy()
        self._num_seen = tensors["num_seen"].cpu().numpy().copy()
        self._num_targets = int(tensors["num_targets"].item())
