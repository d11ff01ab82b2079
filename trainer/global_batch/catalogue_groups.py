"""Groups of ranks that divide the catalogue among them, for a softmax over all items.

The ranks of a group need the number of each other's targets, and the same number of micro-batches, because they exchange encoded
histories in each of them. They agree on both here, before the step.
"""

from dataclasses import replace

import numpy as np
import torch

from models.batches.history_batch import FIRST_ITEM, HistoryBatch
from models.batches.micro_batches import cut_at
from sharding.world import World


class CatalogueGroup:
    """The group of this rank.

    Args:
        size: the number of ranks that divide the catalogue (TrainConfig.catalogue_group).
        num_known: the ids from 1 to below it are scored.
        world: All ranks. Collective.
    """

    def __init__(self, size: int, num_known: int, world: World) -> None:
        self._ranks = world.group_of(size)
        self.share = share_of(self._ranks.rank, self._ranks.world_size, num_known)

    def complete_batch(self, batch: HistoryBatch) -> HistoryBatch:
        """Return the batch, on the CPU, with the number of targets of each rank in each micro-batch. Collective."""
        share = batch.share
        assert share is not None
        counts = [cut.targets[1] - cut.targets[0] for cut in batch.cuts] or [batch.num_targets]
        gathered = self._ranks.gather(torch.tensor(counts, dtype=torch.int64, device=self._ranks.device))
        by_rank = [of_rank.tolist() for of_rank in gathered]
        most = max(len(of_rank) for of_rank in by_rank)
        if most > len(counts):
            batch = with_empty_pieces(batch, most - len(counts))
        filled = [of_rank + [0] * (most - len(of_rank)) for of_rank in by_rank]
        pieces = tuple(zip(*filled, strict=True))
        return replace(batch, share=replace(share, counts=pieces, ranks=self._ranks))


def share_of(rank: int, num_ranks: int, num_known: int) -> tuple[int, int]:
    """Return the first id of a rank's share of the catalogue, and one past the last. Shares differ by at most one item."""
    bounds = FIRST_ITEM + np.arange(num_ranks + 1) * (num_known - FIRST_ITEM) // num_ranks
    return int(bounds[rank]), int(bounds[rank + 1])


def with_empty_pieces(batch: HistoryBatch, number: int) -> HistoryBatch:
    """Return the batch with more micro-batches, which hold nothing."""
    num_histories = batch.layout.offsets.numel() - 1
    ends = [cut.histories[1] for cut in batch.cuts] or [num_histories]
    return cut_at(batch, [0, *ends, *[num_histories] * number])
