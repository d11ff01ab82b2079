"""Cuts of examples into global batches, and the ranks that get them. Imports no torch."""

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LARGEST_COST = 1 << 32  # sums over the largest batch stay below 2^63
SMALLEST_WORK = 1e-300  # no work at all must not be divided by


@dataclass(frozen=True)
class BatchLimit:
    """The limit of a global batch: a number of examples, or of their input events."""

    # Number of examples, or of input events.
    number: int
    # Whether it counts input events.
    of_events: bool

    def runs(self, lengths: np.ndarray, complete: bool) -> np.ndarray:
        """Cut examples of these lengths into batches: bounds, (batches + 1,) int64. `complete` as in `runs_within`."""
        return runs_within(lengths if self.of_events else np.ones_like(lengths), self.number, complete)


def limit_of(batch_size: int, batch_tokens: int | None) -> BatchLimit:
    """Return the limit by the settings of a batch: `batch_tokens` replaces `batch_size`."""
    return BatchLimit(batch_size if batch_tokens is None else batch_tokens, of_events=batch_tokens is not None)


def runs_within(lengths: np.ndarray, budget: int, complete: bool) -> np.ndarray:
    """Cut into the longest runs with at least one element and a sum of at most `budget`: bounds, (runs + 1,) int64.

    Args:
        lengths: length of each element.
        budget: largest sum of a run.
        complete: whether no elements follow. If not, the last run is left out, because it may be incomplete.
    """
    sums = np.concatenate(([0], np.cumsum(lengths)))
    bounds = [0]
    while bounds[-1] < lengths.size:
        fits = int(np.searchsorted(sums, sums[bounds[-1]] + budget, side="right")) - 1
        if fits >= lengths.size and not complete:
            break
        bounds.append(max(fits, bounds[-1] + 1))
    return np.asarray(bounds, dtype=np.int64)


def relative_costs(work: np.ndarray) -> np.ndarray:
    """Return costs for `owners` from estimates of work, relative to the largest one, int64."""
    costs: np.ndarray = np.rint(work * (LARGEST_COST / max(work.max(initial=0.0), SMALLEST_WORK))).astype(np.int64)
    return costs


def dealt(
    lengths: np.ndarray, bounds: np.ndarray, rank: int, world_size: int, costs: np.ndarray | None = None
) -> np.ndarray:
    """Return the elements of a rank, ascending.

    Args:
        lengths: length of each element.
        bounds: bounds of the runs.
        rank: number of the rank.
        world_size: number of ranks.
        costs: as in `owners`.
    """
    return np.flatnonzero(owners(lengths, bounds, world_size, costs) == rank)


def owners(lengths: np.ndarray, bounds: np.ndarray, world_size: int, costs: np.ndarray | None = None) -> np.ndarray:
    """Return the rank of each element.

    Each run is dealt in turns, the longest first, back and forth. With costs it is dealt by them, the largest first, each to the
    rank that has the smallest sum (Graham 1969, https://doi.org/10.1137/0117039): the largest sum exceeds the smallest possible one
    by a third at most.

    Args:
        lengths: length of each element.
        bounds: bounds of the runs.
        world_size: number of ranks.
        costs: cost of an element of each length from 0 on, int64, so that all ranks find the same sums.
    """
    if costs is not None:
        return _owners_by_cost(costs[lengths], bounds, world_size)
    run = np.repeat(np.arange(bounds.size - 1), np.diff(bounds))
    order = np.lexsort((-lengths, run))
    turn, slot = np.divmod(np.arange(lengths.size) - bounds[:-1][run], world_size)
    ranks = np.empty(lengths.size, dtype=np.int64)
    ranks[order] = np.where(turn % 2 == 0, slot, world_size - 1 - slot)
    return ranks


def _owners_by_cost(costs: np.ndarray, bounds: np.ndarray, world_size: int) -> np.ndarray:
    ranks = np.zeros(costs.size, dtype=np.int64)
    if world_size == 1:
        return ranks
    for first, stop in pairwise(bounds.tolist()):
        order = first + np.argsort(-costs[first:stop], kind="stable")
        sums = [(0, rank) for rank in range(world_size)]  # a heap; of equal sums the first rank is next
        chosen = []
        for cost in costs[order].tolist():
            total, rank = sums[0]
            chosen.append(rank)
            heapq.heapreplace(sums, (total + cost, rank))
        ranks[order] = chosen
    return ranks
