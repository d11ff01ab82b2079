"""The mapping of dynamic ids as it was before it was divided over ranks: all of it in one process, in the form of old checkpoints.

It is the reference of the parity tests, and writes the state that earlier versions saved.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.eviction import smallest
from sharding.dynamic_ids.hash_index import HashIndex
from sharding.dynamic_ids.id_counts import IdCounts

Int64 = NDArray[np.int64]

QUEUED_FRACTION = 16
CHUNK_ENTRIES = 4096


@dataclass
class EvictionQueue:
    """The next entries to evict: entries[next:end], in order, as computed at step `swept_at`.

    Entries that were used at that step or later have left the queue.
    """

    entries: Int64
    next: int = 0
    end: int = 0
    swept_at: int = 0

    def take(self, num: int, step: int, last_used: Int64, used_until: int, sweep: Callable[[int], Int64]) -> Int64:
        """Take at most `num` entries that were last used at step `used_until` (before `step`) or earlier, in order.

        The first entry in order that was used later ends the search. So the order has to be that of `last_used`, unless
        `used_until` is the step before.

        Args:
            num: number of entries at most.
            step: the current step.
            last_used: step of the last use of every entry; set to `step` for the taken ones, which removes them from the queue.
            used_until: the latest last use.
            sweep: sweep(n) returns the first n entries to evict among those not used at `step`.
        """
        taken: list[Int64] = []
        while num > 0:
            if self.next == self.end:
                swept = sweep(self.entries.size)
                self.entries[: swept.size] = swept
                self.next = 0
                self.end = swept.size
                self.swept_at = step
                if not swept.size:
                    break
            waiting = self.entries[self.next : min(self.end, self.next + max(num, CHUNK_ENTRIES))]
            used = last_used[waiting]
            places = np.flatnonzero(used < self.swept_at)
            young = used[places] > used_until
            stop = int(young.argmax()) if young.any() else places.size
            chosen = places[: min(stop, num)]
            last_used[waiting[chosen]] = step
            taken.append(waiting[chosen])
            num -= chosen.size
            if num > 0 and stop < places.size:
                self.next += int(places[stop])
                break
            self.next += waiting.size if num > 0 else int(chosen[-1]) + 1
        return np.concatenate(taken) if taken else np.empty(0, np.int64)


@dataclass
class WholeMap:
    """The state of a mapping. It belongs to its creator, and only `observe` changes it, in place.

    Entries 0 .. num_rows - 1 are the table's rows, those after them the places of candidates. A count of 0 marks a free place.
    Everything but the index is saved in this form.
    """

    config: DynamicIdsConfig
    ids: Int64  # (num_rows + max_candidates,)
    counts: Int64  # (num_rows + max_candidates,) of a row, at its last use
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
        """Return the number of ids that have a row."""
        return self.num_rows_used - 1

    @property
    def num_candidates(self) -> int:
        return self.config.max_candidates - self.num_free_places


@dataclass(frozen=True)
class Changes:
    """The changes of one step, the same on every rank. All arrays are int64. `rows` have to be reset before they are trained."""

    admitted_ids: Int64  # (A,) ids that got a row
    rows: Int64  # (A,) their rows
    generations: Int64  # (A,) how often each row passed to another id before
    evicted_ids: Int64  # (E,) ids that lost a row
    evicted_rows: Int64  # (E,) their rows, all of them also in `rows`
    num_waiting: int  # ids seen often enough for which there is no row
    num_forgotten: int  # candidates dropped with their counts
    num_uncounted: int  # ids of this batch without a place among the candidates


@dataclass(frozen=True)
class Rows:
    """The rows of some ids."""

    rows: Int64  # (N,) int64 in [0, num_rows), 0 for ids without a row
    num_unknown: int  # how many of the N have no row


def new_map(config: DynamicIdsConfig) -> WholeMap:
    """Return an empty mapping. Memory: 65 to 97 bytes per row and per candidate."""
    num_entries = config.num_rows + config.max_candidates
    return WholeMap(
        config,
        ids=np.zeros(num_entries, np.int64),
        counts=np.zeros(num_entries, np.int64),
        last_used=np.zeros(num_entries, np.int64),
        generations=np.zeros(config.num_rows, np.int64),
        # A stack from the end: the first candidate gets the first place.
        free_places=np.arange(num_entries - 1, config.num_rows - 1, -1, dtype=np.int64),
        row_queue=_new_queue(config.num_rows - 1),
        candidate_queue=_new_queue(config.max_candidates),
        index=HashIndex(num_entries),
        num_free_places=config.max_candidates,
    )


def _new_queue(num_entries: int) -> EvictionQueue:
    return EvictionQueue(np.zeros(-(-num_entries // QUEUED_FRACTION), np.int64))


def look_up(state: WholeMap, ids: Int64) -> Rows:
    """Return the rows of raw ids ((N,) int64 of any value, repeats allowed). Does not change the state.

    Training looks up after `observe`; evaluation and serving only look up.
    """
    entries, _ = state.index.find(ids)
    rows = np.where(entries < state.config.num_rows, entries, 0)
    np.maximum(rows, 0, out=rows)
    return Rows(rows, ids.size - int(np.count_nonzero(rows)))


def observe(state: WholeMap, seen: IdCounts) -> Changes:
    """Update the state by one global batch, in place. `seen` are the counts of all ranks together, possibly empty."""
    state.step += 1
    # 1. Count known ids.
    entries, slots = state.index.find(seen.ids)
    known = entries >= 0
    totals = seen.counts.copy()
    totals[known] += _counts_now(state, entries[known])
    state.counts[entries[known]] = totals[known]
    state.last_used[entries[known]] = state.step

    # 2. Admit ids that were seen often enough, to unused rows and then to those of evicted ids.
    rowless = ~known | (entries >= state.config.num_rows)
    wanting = _most_seen(np.flatnonzero(rowless & (totals >= state.config.admit_after)), totals)
    rows, num_fresh = _take_rows(state, wanting.size)
    admitted = wanting[: rows.size]
    evicted_rows = rows[num_fresh:]
    evicted_ids = state.ids[evicted_rows]
    state.generations[evicted_rows] += 1
    state.index.remove(evicted_ids)
    _leave_candidates(state, admitted[known[admitted]], entries, slots, rows[known[admitted]])

    # 3. Assign places among the candidates to the other new ids, including the places that have just become free.
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
    """Return places ordered by total, the most seen first. `places` ascend with the ids, so a stable sort breaks ties by id."""
    return places[np.argsort(-totals[places], kind="stable")]


def _counts_now(state: WholeMap, entries: Int64) -> Int64:
    """Return the counts of entries. With eviction by use, those of rows are halved per half-life since their last use."""
    if state.config.evict == "age":
        return state.counts[entries]
    half_life = state.config.half_life_steps
    halvings = state.step // half_life - state.last_used[entries] // half_life
    return state.counts[entries] >> np.where(entries < state.config.num_rows, np.minimum(halvings, 63), 0)


def _take_rows(state: WholeMap, num: int) -> tuple[Int64, int]:
    """Take at most `num` rows for new ids and mark them as used at this step.

    Returns the rows, and how many of them never had an id; these come first.
    """
    config = state.config
    num_fresh = min(num, config.num_rows - state.num_rows_used)
    fresh = np.arange(state.num_rows_used, state.num_rows_used + num_fresh, dtype=np.int64)
    state.num_rows_used += num_fresh
    state.last_used[fresh] = state.step  # taken, so the sweep below skips them

    def order(rows: Int64) -> list[Int64]:
        uses = [_counts_now(state, rows)] if config.evict == "use" else []
        return [*uses, state.last_used[rows], state.ids[rows]]

    min_age = config.max_age_steps if config.evict == "age" else 1
    sweep = _sweep(state, 1, config.num_rows, order)
    evicted = state.row_queue.take(num - num_fresh, state.step, state.last_used, state.step - min_age, sweep)
    return np.concatenate((fresh, evicted)), num_fresh


def _leave_candidates(state: WholeMap, admitted: Int64, entries: Int64, slots: Int64, rows: Int64) -> None:
    """Point the index of admitted candidates to their rows and free their places."""
    places = entries[admitted]
    state.index.replace(slots[admitted], rows)
    state.counts[places] = 0
    state.free_places[state.num_free_places : state.num_free_places + places.size] = places
    state.num_free_places += places.size


def _take_places(state: WholeMap, num: int) -> tuple[Int64, int]:
    """Take at most `num` places for new candidates and mark them as used at this step.

    Returns the places, and the number of candidates that were forgotten for them.
    """
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


def _sweep(state: WholeMap, first: int, end: int, order: Callable[[Int64], list[Int64]]) -> Callable[[int], Int64]:
    """Return the sweep of EvictionQueue.take over entries first .. end - 1.

    It returns the first entries to evict. All entries are in use, but not at this step.
    """

    def sweep(num: int) -> Int64:
        idle = first + np.flatnonzero(state.last_used[first:end] < state.step)
        return idle[smallest(order(idle), num)]

    return sweep


def state_tensors(state: WholeMap) -> dict[str, Tensor]:
    """Return the state as int64 tensors, replicated over ranks, with shapes that depend on the config alone.

    They share memory with the state, except `numbers`, which is a copy. To load a checkpoint, load it into the tensors of a new
    state and build the state from them by `from_tensors`.
    """
    numbers = np.asarray([state.step, state.num_rows_used, state.num_free_places, *_marks(state)], np.int64)
    return {name: torch.from_numpy(array) for name, array in {**_arrays(state), "numbers": numbers}.items()}


def _arrays(state: WholeMap) -> dict[str, Int64]:
    return {
        "ids": state.ids,
        "counts": state.counts,
        "last_used": state.last_used,
        "generations": state.generations,
        "free_places": state.free_places,
        "row_queue": state.row_queue.entries,
        "candidate_queue": state.candidate_queue.entries,
    }


def _marks(state: WholeMap) -> list[int]:
    return [n for queue in (state.row_queue, state.candidate_queue) for n in (queue.next, queue.end, queue.swept_at)]
