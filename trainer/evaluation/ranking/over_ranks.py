"""Exact sums and areas under curves over the impressions of all workers. Collective.

For areas the workers divide the scores into ranges. Each receives the counts of its range in rounds of bounded size, and stores
many of them in temporary files. So no worker holds the scores of all impressions, not even its own.
"""

from dataclasses import fields

import numpy as np
import torch

from sharding.world import World
from trainer.evaluation.ranking.judged import (
    Areas,
    MergedCounts,
    ScoreCounts,
    Sums,
    mean_precision,
    pairs_in_order,
    precision_sum,
    share_of_pairs,
)

ROUND = 1 << 20  # counts that a worker sends at a time
_SAMPLE = 256  # scores of each worker that determine the ranges
_LIMB = 1 << 31  # sums over workers are sent in two halves, so that they always fit into int64


def sum_over_ranks(sums: Sums, world: World) -> Sums:
    """Return the exact sum over workers. Collective."""
    return Sums(*_sum_exactly([getattr(sums, entry.name) for entry in fields(Sums)], world))


def _sum_exactly(values: list[int], world: World) -> list[int]:
    """Return the sums over workers. Collective."""
    halves = torch.tensor([divmod(value, _LIMB) for value in values], dtype=torch.int64, device=world.device)
    return [high * _LIMB + low for high, low in world.sum(halves).tolist()]


def areas_over_ranks(counts: ScoreCounts, world: World) -> Areas:
    """Return the areas under the curves of the impressions of all workers. Collective.

    The workers determine ranges of scores from a sample. Each receives the impressions of its range, counts the pairs with
    a positive among them, and sums the precisions at these positives.
    """
    if world.world_size > 1:
        counts = _exchanged(counts, world)
    own = torch.tensor([[counts.positives.sum(), counts.negatives.sum()]], dtype=torch.float64, device=world.device)
    totals = torch.cat(world.gather(own)).cpu().numpy()
    pairs = pairs_in_order(counts, float(totals[: world.rank, 1].sum()))
    in_order = world.sum(torch.tensor([pairs], dtype=torch.float64, device=world.device)).item()
    positives, negatives = totals.sum(axis=0).tolist()
    positives_above, negatives_above = totals[world.rank + 1 :].sum(axis=0).tolist()
    (precisions,) = _sum_exactly([precision_sum(counts, positives_above, negatives_above)], world)
    return Areas(share_of_pairs(in_order, positives * negatives), mean_precision(precisions, positives))


def _exchanged(counts: ScoreCounts, world: World) -> ScoreCounts:
    """Return the counts of all workers in this worker's range of scores. Equal scores are always in one range."""
    size = counts.scores.size
    sample = np.array(counts.scores[np.linspace(0, size - 1, min(size, _SAMPLE)).astype(np.int64)])
    samples = torch.cat(world.gather(torch.from_numpy(sample).to(world.device))).cpu().numpy()
    if samples.size == 0:
        return counts
    bounds = np.sort(samples)[np.arange(1, world.world_size) * samples.size // world.world_size]
    cuts = np.concatenate(([0], np.searchsorted(counts.scores, bounds), [size])).astype(np.int64)
    all_sent = torch.stack(world.gather(torch.from_numpy(np.diff(cuts)).to(world.device))).cpu().numpy()
    each = max(1, ROUND // world.world_size)  # counts for one worker in one round
    merged = MergedCounts()
    for first in range(0, int(all_sent.max()), each):
        sent, received = (
            np.clip(of - first, 0, each).tolist() for of in (all_sent[world.rank], all_sent[:, world.rank])
        )
        begins = np.minimum(cuts[:-1] + first, cuts[1:]).tolist()
        pieces = [slice(begin, begin + count) for begin, count in zip(begins, sent, strict=True)]
        columns = [
            np.concatenate([values[piece] for piece in pieces])
            for values in (counts.scores, counts.positives, counts.negatives)
        ]
        leaving = torch.from_numpy(np.stack(columns, axis=1).reshape(-1)).to(world.device)
        arriving = world.exchange(leaving, [3 * n for n in sent], [3 * n for n in received])
        merged.add(ScoreCounts(*arriving.cpu().numpy().reshape(-1, 3).T))
    return merged.merged()
