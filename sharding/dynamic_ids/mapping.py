"""Dynamic ids: raw 64-bit ids to the rows of a table of fixed size, with admission by frequency and eviction.

An id is unknown and reads row 0 until it was seen `admit_after` times; until then it is a candidate, counted exactly.
When the table is full, ids lose their rows by the policy of the config, never row 0 and never an id of the present batch.

The mapping after a step is a function of the sequence of global batches (sharding.dynamic_ids.id_counts): every rank holds
the whole state and applies the same update, so nothing depends on the number of ranks or on the order within a batch. All is
integer arithmetic and ties are broken by the id, so no machine can round differently. The rules, at every step in this order:

1. Ids of the batch that have a row or are candidates are counted and marked as used at this step.
2. Ids without a row that were seen `admit_after` times are admitted, the most seen first, then the smaller id. They take
   the rows that never had an owner, in ascending order, then those of evicted ids, in the order of eviction. If rows run
   out, because all are in use or too young, the others are candidates (`num_waiting`) until they are seen again.
3. New ids that were not admitted become candidates, the most seen first, then the smaller id. Where places run out, the
   candidates unseen for longest are forgotten; a batch with more new ids than places leaves the rest uncounted.

Candidates are an exact table of fixed size, not a count-min sketch (Cormode & Muthukrishnan 2005): a sketch admits ids that
collide with frequent ones, and has to be aged as a whole. Here an id is admitted exactly when it was seen often enough,
unless it was forgotten because `max_candidates` others were seen since, and what is forgotten is counted.

Eviction by age takes the id that was unused for longest, then the smaller id, and only ids unused for `max_age_steps`.
Eviction by use takes the id that was used least, then the one unused for longest, then the smaller id. Counts of uses are
halved at every multiple of `half_life_steps`, as in TinyLFU (Einziger, Friedman & Manes 2017, arXiv:1512.00727), but
lazily, when they are read. That order is found for a sixteenth of the rows at a time (sharding.dynamic_ids.eviction), and an id
that is used before its turn is spared.

This module decides; it holds no weights. Who owns the table resets the rows in `Changes` before they are trained
(sharding.tables.reset_rows).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.eviction import EvictionQueue, smallest
from sharding.dynamic_ids.hash_index import HashIndex
from sharding.dynamic_ids.id_counts import SeenIds

Int64 = NDArray[np.int64]

QUEUED_FRACTION = 16


@dataclass
class DynamicIdsState:
    """All that a mapping knows. Owned by whoever made it and changed only by `observe`, in place.

    Entries 0 .. num_rows - 1 are the table's rows, those after them the places of candidates. Per entry: the raw id,
    how often it was seen (0: a free place), the step of its last use. Everything but the index is saved as it is.
    """

    config: DynamicIdsConfig
    ids: Int64  # (num_rows + max_candidates,)
    counts: Int64  # (num_rows + max_candidates,) of a row, as they were at its last use
    last_used: Int64  # (num_rows + max_candidates,)
    generations: Int64  # (num_rows,) how often a row passed from one id to another
    free_places: Int64  # (max_candidates,) a stack; the first num_free_places are free
    row_queue: EvictionQueue
    candidate_queue: EvictionQueue
    index: HashIndex
    step: int = 0  # number of batches observed
    num_rows_used: int = 1  # row 0 among them
    num_free_places: int = 0

    @property
    def num_admitted(self) -> int:
        """Ids that have a row."""
        return self.num_rows_used - 1

    @property
    def num_candidates(self) -> int:
        return self.config.max_candidates - self.num_free_places


@dataclass(frozen=True)
class Changes:
    """What one step changed, the same on every rank. All arrays int64; `rows` are to be reset before they are trained.

    admitted_ids, rows, generations: (A,) ids with the rows that they got, and how often each row changed hands before.
    evicted_ids, evicted_rows: (E,) ids with the rows that they lost; each of these rows is also among `rows`.
    num_waiting: ids seen often enough that found no row. num_forgotten: candidates dropped with their counts.
    num_uncounted: ids of this batch for which there was no place among the candidates.
    """

    admitted_ids: Int64
    rows: Int64
    generations: Int64
    evicted_ids: Int64
    evicted_rows: Int64
    num_waiting: int
    num_forgotten: int
    num_uncounted: int


@dataclass(frozen=True)
class Rows:
    """rows: (N,) int64 in [0, num_rows), 0 where the id has none; num_unknown: how many of the N have none."""

    rows: Int64
    num_unknown: int


def new_state(config: DynamicIdsConfig) -> DynamicIdsState:
    """A mapping that knows no id. Memory: 65 to 97 bytes per row and per candidate."""
    num_entries = config.num_rows + config.max_candidates
    return DynamicIdsState(
        config,
        ids=np.zeros(num_entries, np.int64),
        counts=np.zeros(num_entries, np.int64),
        last_used=np.zeros(num_entries, np.int64),
        generations=np.zeros(config.num_rows, np.int64),
        # Taken from the end: the first candidate gets the first place.
        free_places=np.arange(num_entries - 1, config.num_rows - 1, -1, dtype=np.int64),
        row_queue=_new_queue(config.num_rows - 1),
        candidate_queue=_new_queue(config.max_candidates),
        index=HashIndex(num_entries),
        num_free_places=config.max_candidates,
    )


def _new_queue(num_entries: int) -> EvictionQueue:
    return EvictionQueue(np.zeros(-(-num_entries // QUEUED_FRACTION), np.int64))


def look_up(state: DynamicIdsState, ids: Int64) -> Rows:
    """The rows of raw ids ((N,) int64 of any value, repeats allowed). Changes nothing.

    Training looks up after `observe`; evaluation and serving only look up.
    """
    entries, _ = state.index.find(ids)
    rows = np.where(entries < state.config.num_rows, entries, 0)
    np.maximum(rows, 0, out=rows)
    return Rows(rows, ids.size - int(np.count_nonzero(rows)))


def observe(state: DynamicIdsState, seen: SeenIds) -> Changes:
    """Take in one global batch, in place. `seen` must be that of all ranks together, even if it is empty."""
    state.step += 1
    # 1. Count what is known.
    entries, slots = state.index.find(seen.ids)
    known = entries >= 0
    totals = seen.counts.copy()
    totals[known] += _counts_now(state, entries[known])
    state.counts[entries[known]] = totals[known]
    state.last_used[entries[known]] = state.step

    # 2. Admit: rows for those seen often enough, fresh ones and then those of evicted ids.
    rowless = ~known | (entries >= state.config.num_rows)
    wanting = _most_seen(np.flatnonzero(rowless & (totals >= state.config.admit_after)), totals)
    rows, num_fresh = _take_rows(state, wanting.size)
    admitted = wanting[: rows.size]
    evicted_rows = rows[num_fresh:]
    evicted_ids = state.ids[evicted_rows]
    state.generations[evicted_rows] += 1
    state.index.remove(evicted_ids)
    _leave_candidates(state, admitted[known[admitted]], entries, slots, rows[known[admitted]])

    # 3. Places among the candidates for the other new ids, those just left included.
    new = ~known
    new[admitted] = False
    unplaced = _most_seen(np.flatnonzero(new), totals)
    places, num_forgotten = _take_places(state, unplaced.size)
    counted = unplaced[: places.size]

    arrivals = np.concatenate((admitted, counted))
    homes = np.concatenate((rows, places))
    state.ids[homes] = seen.ids[arrivals]
    state.counts[homes] = totals[arrivals]
    into_index = ~known[arrivals]
    state.index.insert(seen.ids[arrivals[into_index]], homes[into_index])
    return Changes(
        admitted_ids=seen.ids[admitted],
        rows=rows,
        generations=state.generations[rows],
        evicted_ids=evicted_ids,
        evicted_rows=evicted_rows,
        num_waiting=wanting.size - admitted.size,
        num_forgotten=num_forgotten,
        num_uncounted=unplaced.size - counted.size,
    )


def _most_seen(places: Int64, totals: Int64) -> Int64:
    """Most seen first. `places` ascend with the ids, so that a stable sort leaves ties to the smaller id."""
    return places[np.argsort(-totals[places], kind="stable")]


def _counts_now(state: DynamicIdsState, entries: Int64) -> Int64:
    """Counts of entries. With eviction by use, those of rows are halved for every half-life that began since their last use."""
    if state.config.evict == "age":
        return state.counts[entries]
    half_life = state.config.half_life_steps
    halvings = state.step // half_life - state.last_used[entries] // half_life
    return state.counts[entries] >> np.where(entries < state.config.num_rows, np.minimum(halvings, 63), 0)


def _take_rows(state: DynamicIdsState, num: int) -> tuple[Int64, int]:
    """At most `num` rows for new owners, marked as used at this step, and how many of them, which come first, never had one."""
    config = state.config
    num_fresh = min(num, config.num_rows - state.num_rows_used)
    fresh = np.arange(state.num_rows_used, state.num_rows_used + num_fresh, dtype=np.int64)
    state.num_rows_used += num_fresh
    state.last_used[fresh] = state.step  # taken, so not to be swept up below

    def order(rows: Int64) -> list[Int64]:
        uses = [_counts_now(state, rows)] if config.evict == "use" else []
        return [*uses, state.last_used[rows], state.ids[rows]]

    min_age = config.max_age_steps if config.evict == "age" else 1
    sweep = _sweep(state, 1, config.num_rows, order)
    evicted = state.row_queue.take(num - num_fresh, state.step, state.last_used, state.step - min_age, sweep)
    return np.concatenate((fresh, evicted)), num_fresh


def _leave_candidates(state: DynamicIdsState, admitted: Int64, entries: Int64, slots: Int64, rows: Int64) -> None:
    """Point the index of admitted candidates to their rows and free their places."""
    places = entries[admitted]
    state.index.replace(slots[admitted], rows)
    state.counts[places] = 0
    state.free_places[state.num_free_places : state.num_free_places + places.size] = places
    state.num_free_places += places.size


def _take_places(state: DynamicIdsState, num: int) -> tuple[Int64, int]:
    """At most `num` places for new candidates, marked as used at this step, and how many were forgotten for them."""
    num_free = min(num, state.num_free_places)
    state.num_free_places -= num_free
    free = state.free_places[state.num_free_places : state.num_free_places + num_free][::-1]
    state.last_used[free] = state.step
    sweep = _sweep(
        state, state.config.num_rows, state.ids.size, lambda places: [state.last_used[places], state.ids[places]]
    )
    forgotten = state.candidate_queue.take(num - num_free, state.step, state.last_used, state.step - 1, sweep)
    state.index.remove(state.ids[forgotten])
    return np.concatenate((free, forgotten)), forgotten.size


def _sweep(
    state: DynamicIdsState, first: int, end: int, order: Callable[[Int64], list[Int64]]
) -> Callable[[int], Int64]:
    """For EvictionQueue.take: the first to go among entries first .. end - 1, all of them in use, but not at this step."""

    def sweep(num: int) -> Int64:
        idle = first + np.flatnonzero(state.last_used[first:end] < state.step)
        return idle[smallest(order(idle), num)]

    return sweep


def state_tensors(state: DynamicIdsState) -> dict[str, Tensor]:
    """All of the state as int64 tensors, replicated over ranks, whose shapes depend on the config alone.

    They share memory with the state, except `numbers`, which is a copy: load a checkpoint into those of a new state, then
    make the state from them with `from_tensors`.
    """
    numbers = np.asarray([state.step, state.num_rows_used, state.num_free_places, *_marks(state)], np.int64)
    return {name: torch.from_numpy(array) for name, array in {**_arrays(state), "numbers": numbers}.items()}


def from_tensors(config: DynamicIdsConfig, tensors: dict[str, Tensor]) -> DynamicIdsState:
    """The state that `state_tensors` gave, which goes on exactly as the saved one. Copies the tensors; from any device.

    Raises ValueError if they were made with another number of rows or candidates.
    """
    state = new_state(config)
    for name, array in _arrays(state).items():
        if tensors[name].shape != array.shape:
            raise ValueError(
                f"dynamic ids: {name} has {tensors[name].numel()} values where the config needs {array.size}; "
                "num_rows and max_candidates must be those that the state was saved with"
            )
        array[:] = tensors[name].cpu().numpy()
    state.step, state.num_rows_used, state.num_free_places, *marks = (int(n) for n in tensors["numbers"].tolist())
    for queue, (head, end, swept_at) in zip(
        (state.row_queue, state.candidate_queue), (marks[:3], marks[3:]), strict=True
    ):
        queue.next, queue.end, queue.swept_at = head, end, swept_at
    entries = np.flatnonzero(state.counts)
    state.index.insert(state.ids[entries], entries)
    return state


def _arrays(state: DynamicIdsState) -> dict[str, Int64]:
    return {
        "ids": state.ids,
        "counts": state.counts,
        "last_used": state.last_used,
        "generations": state.generations,
        "free_places": state.free_places,
        "row_queue": state.row_queue.entries,
        "candidate_queue": state.candidate_queue.entries,
    }


def _marks(state: DynamicIdsState) -> list[int]:
    return [n for queue in (state.row_queue, state.candidate_queue) for n in (queue.next, queue.end, queue.swept_at)]
