"""What a global batch holds of ids: each id once, with how often it was seen. The same on every rank.

A rank sees only its share of the batch. Ranks exchange pairs of (id, count), not events, so the exchange is as large as the
distinct ids of the global batch. Sums do not depend on who counted what, nor on the order of ids within a batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sharding.world import World

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class SeenIds:
    """ids: (U,) int64, distinct, ascending; counts: (U,) int64, at least 1."""

    ids: Int64
    counts: Int64


def count_ids(ids: Int64) -> SeenIds:
    """Count raw ids ((N,) int64 of any value, in any order)."""
    distinct, counts = np.unique(ids, return_counts=True)
    return SeenIds(distinct, counts)


def exchange_counts(mine: SeenIds, world: World) -> SeenIds:
    """The counts of all ranks together. Collective."""
    if world.world_size == 1:
        return mine
    pairs = torch.from_numpy(np.stack((mine.ids, mine.counts), axis=1)).to(world.device)
    everyone = torch.cat(world.gather(pairs)).cpu().numpy()
    if not len(everyone):
        return mine
    ids, counts = everyone[np.argsort(everyone[:, 0])].T
    starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    return SeenIds(ids[starts], np.add.reduceat(counts, starts))
