"""How often each item is a target, estimated while training goes on: the streaming frequency estimate of Yi et al. 2019.

"Sampling-bias-corrected neural modeling for large corpus item recommendations" (RecSys 2019, algorithm 2) keeps for every item
when it was last seen, A, and a moving average of the gaps between its occurrences, B; 1 / B is its frequency:

    B <- (1 - a) B + a (t - A),   A <- t

Where ours deviates: the arrays are direct, since the catalogue is known, so nothing collides. t counts targets, not steps, so that
1 / B is the probability of a single draw also for items that every batch has; the c occurrences of an item in one batch share its
gap evenly, and weigh as much as c updates. Until an item was seen 1 / a times its gaps are averaged plainly, so that the start
does not matter; an item that was never seen is taken to be as frequent as the average one.

All ranks hold the whole state and take in the same global batches, so they agree, and the number of ranks makes no difference.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharding.dynamic_ids.id_counts import SeenIds


class TargetFrequency:
    """num_ids: ids are below it, 0 is never a target; rate: a in the formula above. 24 bytes per id."""

    def __init__(self, num_ids: int, rate: float) -> None:
        self._rate = rate
        self._gaps = np.full(num_ids, max(1.0, num_ids - 1.0))
        self._last_seen = np.zeros(num_ids, np.int64)
        self._num_seen = np.zeros(num_ids, np.int64)
        self._num_targets = 0

    def observe(self, targets: SeenIds) -> None:
        """Take in the targets of a global batch."""
        ids, counts = targets.ids, targets.counts
        self._num_targets += int(counts.sum())
        gaps = (self._num_targets - self._last_seen[ids]) / counts
        self._num_seen[ids] += counts
        weights = np.maximum(1.0 - (1.0 - self._rate) ** counts, counts / self._num_seen[ids])
        self._gaps[ids] += weights * (gaps - self._gaps[ids])
        self._last_seen[ids] = self._num_targets

    def share_of(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Estimates of the share of each id in all targets. Those of all ids need not sum to one."""
        return 1.0 / self._gaps[ids]

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, for a checkpoint; it shares memory, but for the number of targets."""
        arrays = {"gaps": self._gaps, "last_seen": self._last_seen, "num_seen": self._num_seen}
        number = {"num_targets": torch.tensor([self._num_targets])}
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | number

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._gaps = tensors["gaps"].cpu().numpy().copy()
        self._last_seen = tensors["last_seen"].cpu().numpy().copy()
        self._num_seen = tensors["num_seen"].cpu().numpy().copy()
        self._num_targets = int(tensors["num_targets"].item())
