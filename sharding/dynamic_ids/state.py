"""The state of a mapping of dynamic ids on one rank, and look-ups of the ids that this rank owns.

Nothing here exchanges anything between ranks: sharding.dynamic_ids.mapping does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.entries import Entries
from sharding.dynamic_ids.eviction import EvictionQueue
from sharding.world import ALONE, World

Int64 = NDArray[np.int64]

QUEUED_FRACTION = 16


@dataclass
class DynamicIdsState:
    """One rank's part of a mapping: the ids that it owns. It belongs to its creator, and only `observe` changes it, in place."""

    config: DynamicIdsConfig
    """The settings of the table."""
    world: World
    """All ranks. Its collectives carry the decisions that need all of them."""
    entries: Entries
    """The ids of this rank."""
    row_queue: EvictionQueue
    """The next ids to lose their rows."""
    candidate_queue: EvictionQueue
    """The next candidates to be forgotten."""
    step: int = 0
    """Number of batches observed."""
    num_rows_used: int = 1
    """Rows in use on all ranks, row 0 among them."""
    num_candidates: int = 0
    """Candidates of all ranks."""

    @property
    def num_admitted(self) -> int:
        """Return the number of ids that have a row, of all ranks."""
        return self.num_rows_used - 1

    @property
    def num_bytes(self) -> int:
        """Return the memory of this rank's part."""
        return self.entries.num_bytes + self.row_queue.num_bytes + self.candidate_queue.num_bytes


@dataclass(frozen=True)
class Rows:
    """The rows of some ids."""

    rows: Int64  # (N,) int64 in [0, num_rows), 0 for ids without a row
    num_unknown: int  # how many of the N have no row


def new_state(config: DynamicIdsConfig, world: World = ALONE) -> DynamicIdsState:
    """Return an empty mapping. Memory: 75 to 107 bytes per row and per candidate, divided by the number of ranks."""
    keys_of_rows = 3 if config.evict == "use" else 2
    return DynamicIdsState(
        config,
        world,
        Entries(config.num_rows + config.max_candidates, world.world_size),
        row_queue=_new_queue(config.num_rows - 1, keys_of_rows),
        candidate_queue=_new_queue(config.max_candidates, 2),
    )


def _new_queue(num_entries: int, width: int) -> EvictionQueue:
    capacity = -(-num_entries // QUEUED_FRACTION)
    return EvictionQueue(capacity, np.empty(0, np.int64), np.empty((width, 0), np.int64))


def look_up(state: DynamicIdsState, ids: Int64) -> Rows:
    """Return the rows of raw ids that this rank owns ((N,) int64 of any value, repeats allowed). Does not change the state.

    A rank finds no row for ids of other ranks: `look_up_anywhere` asks their owners.
    """
    entries, _ = state.entries.index.find(ids)
    rows = state.entries.rows[entries]
    np.maximum(rows, 0, out=rows)
    return Rows(rows, ids.size - int(np.count_nonzero(rows)))


def counts_at(state: DynamicIdsState, entries: Int64, step: int) -> Int64:
    """Return the counts of entries at a step. With eviction by use, those of rows are halved per half-life since their last use."""
    counts = state.entries.counts[entries]
    if state.config.evict == "age":
        return counts
    half_life = state.config.half_life_steps
    halvings = step // half_life - state.entries.last_used[entries] // half_life
    return counts >> np.where(state.entries.rows[entries] >= 0, np.minimum(halvings, 63), 0)


def row_keys(state: DynamicIdsState, entries: Int64, step: int) -> list[Int64]:
    """Return the keys, most significant first, by which entries with a row are evicted at a step."""
    uses = [counts_at(state, entries, step)] if state.config.evict == "use" else []
    return [*uses, *candidate_keys(state, entries)]


def candidate_keys(state: DynamicIdsState, entries: Int64) -> list[Int64]:
    """Return the keys, most significant first, by which candidates are forgotten."""
    return [state.entries.last_used[entries], state.entries.ids[entries]]
