"""Counts of the unique ids of a batch.

A rank has only its share of a global batch. Ranks exchange pairs of (id, count) instead of events. The sums depend neither on the
ranks' shares nor on the order of ids within a batch. `exchange_counts` gathers all of them on every rank, for draws from the whole
batch. Where ids have owners, only these get the counts (sharding.dynamic_ids.owners).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sharding.world import World

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class IdCounts:
    """Unique ids with their counts."""

    ids: Int64  # (U,) int64, unique, ascending
    counts: Int64  # (U,) int64, at least 1


def count_ids(ids: Int64) -> IdCounts:
    """Count raw ids ((N,) int64 of any value, in any order)."""
    distinct, counts = np.unique(ids, return_counts=True)
    return IdCounts(distinct, counts)


def sum_counts(ids: Int64, counts: Int64) -> IdCounts:
    """Sum the counts of equal ids ((N,) int64 each, in any order)."""
    if not ids.size:
        return IdCounts(ids, counts)
    order = np.argsort(ids)
    ids, counts = ids[order], counts[order]
    starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    return IdCounts(ids[starts], np.add.reduceat(counts, starts))


def exchange_counts(own: IdCounts, world: World) -> IdCounts:
    """Return the counts of all ranks together. Collective."""
    if world.world_size == 1:
        return own
    pairs = torch.from_numpy(np.stack((own.ids, own.counts), axis=1)).to(world.device)
    everyone = torch.cat(world.gather(pairs)).cpu().numpy()
    return sum_counts(everyone[:, 0], everyone[:, 1])
