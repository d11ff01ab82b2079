"""Dynamic ids: a mapping from raw 64-bit ids to the rows of a table of fixed size, with admission by frequency and eviction.

An id is unknown and reads row 0 until it was seen `admit_after` times. Until then it is a candidate, counted exactly. When the
table is full, ids lose their rows by the configured policy, never row 0 and never an id of the current batch.

Every id is owned by one rank (sharding.dynamic_ids.owners), which alone holds its row, count and last use. So the memory of a rank
is that of the mapping divided by the number of ranks. Ranks agree on three things at each step: which ids are admitted, to which
rows, and which candidates are forgotten. For that they gather a few numbers, the ids that are admitted with the rows that change
hands, and samples of keys (sharding.dynamic_ids.selection), but never all ids of the batch or of the mapping.

The mapping after a step is a function of the sequence of global batches (sharding.dynamic_ids.id_counts). All decisions follow an
order of all ids together, so the result depends neither on the number of ranks nor on the order within a batch. All arithmetic is
on integers and ties are broken by the id, so machines cannot round differently. The rules apply at every step, in this order:

1. Ids of the batch that have a row or are candidates are counted and marked as used at this step.
2. Ids without a row that were seen `admit_after` times are admitted, the most seen first, then the smaller id. They take rows
   that never had an id, in ascending order, then those of evicted ids, in the order of eviction. If no row is left, because all
   are in use or too young, the other ids stay candidates (`num_waiting`) until they are seen again.
3. New ids that were not admitted become candidates, the most seen first, then the smaller id. If no place is left, the
   candidates unseen for longest are forgotten. If a batch has more new ids than places, the rest is not counted.

Candidates are an exact table of fixed size, not a count-min sketch (Cormode & Muthukrishnan 2005). A sketch admits ids that
collide with frequent ones, and has to be aged as a whole. Here an id is admitted exactly when it was seen often enough, unless
it was forgotten because `max_candidates` other ids were seen since. Forgotten ids are counted.

Eviction by age takes the id that was unused for longest, then the smaller id, and only ids unused for `max_age_steps`. Eviction
by use takes the id that was used least, then the one unused for longest, then the smaller id. Counts of uses are halved at
every multiple of `half_life_steps`, as in TinyLFU (Einziger, Friedman & Manes 2017, arXiv:1512.00727), but lazily, when they
are read. The order is computed for a sixteenth of the rows at a time (sharding.dynamic_ids.eviction). An id that is used before
its turn is spared.

This module holds no weights. The owner of the table resets the rows in `Changes` before they are trained
(sharding.tables.reset_rows).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sharding.dynamic_ids.entries import NO_ROW
from sharding.dynamic_ids.eviction import smallest
from sharding.dynamic_ids.id_counts import IdCounts, sum_counts
from sharding.dynamic_ids.owners import owners_of, route_to
from sharding.dynamic_ids.selection import Offer, num_among_smallest
from sharding.dynamic_ids.state import DynamicIdsState, Rows, candidate_keys, counts_at, look_up, row_keys
from sharding.world import World

Int64 = NDArray[np.int64]


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
    num_uses: int  # uses of ids in this batch
    num_unknown_uses: int  # uses of ids that have no row after the step


def look_up_anywhere(state: DynamicIdsState, ids: Int64) -> Rows:
    """Return the rows of raw ids ((N,) int64 of any value, repeats allowed) of any owners. Collective."""
    if state.world.world_size == 1:
        return look_up(state, ids)
    route = route_to(owners_of(ids, state.world.world_size), state.world)
    (asked,) = route.send(ids)
    rows = route.answer(look_up(state, asked).rows)
    return Rows(rows, ids.size - int(np.count_nonzero(rows)))


def observe_shares(state: DynamicIdsState, used: IdCounts, ids: Int64) -> tuple[Changes, Int64]:
    """Update the state by one global batch, in place, and return the changes and the rows of `ids` after them. Collective.

    Counts, questions and answers travel together: one exchange to the owners and one back.

    Args:
        state: This rank's part of the mapping.
        used: The counts of this rank's share of the batch.
        ids: (N,) ids to look up for this rank, repeats allowed.
    """
    if state.world.world_size == 1:
        return observe(state, used), look_up(state, ids).rows
    sent = np.concatenate((ids, used.ids))
    route = route_to(owners_of(sent, state.world.world_size), state.world)
    asked, counts = route.send(sent, np.concatenate((np.zeros(ids.size, np.int64), used.counts)))
    is_use = counts > 0
    changes = observe(state, sum_counts(asked[is_use], counts[is_use]))
    return changes, route.answer(look_up(state, asked).rows)[: ids.size]


def observe(state: DynamicIdsState, seen: IdCounts) -> Changes:
    """Update the state by one global batch, in place. Collective.

    `seen` are the counts, of all ranks together, of the ids that this rank owns; possibly empty.
    """
    state.step += 1
    # 1. Count known ids.
    batch = _count_known(state, seen)
    wanting = _most_seen(np.flatnonzero(batch.rowless & (batch.totals >= state.config.admit_after)), batch.totals)
    num_rowless_uses = int(seen.counts[batch.rowless].sum())
    own = [wanting.size, int(np.count_nonzero(batch.places < 0)), int(seen.counts.sum()), num_rowless_uses]
    num_wanting, num_new, num_uses, num_rowless_uses = (
        sum(of_rank) for of_rank in zip(*state.world.gather_numbers(own), strict=True)
    )

    # 2. Admit ids that were seen often enough, to unused rows and then to those of evicted ids.
    granted = _grant_rows(state, batch, wanting, num_wanting)
    _give_rows(state, batch, wanting, granted)

    # 3. Assign places among the candidates to the other new ids, including the places that have just become free.
    num_admitted = granted.ids.size
    num_unplaced = num_new - (num_admitted - granted.num_promoted)
    is_unplaced = batch.places < 0
    is_unplaced[wanting[: granted.own_rows.size]] = False
    unplaced = np.flatnonzero(is_unplaced)
    num_forgotten, num_uncounted = _count_candidates(state, batch, unplaced, num_unplaced)
    return Changes(
        admitted_ids=granted.ids,
        rows=granted.rows,
        generations=granted.generations,
        evicted_ids=granted.evicted_ids,
        evicted_rows=granted.rows[num_admitted - granted.evicted_ids.size :],
        num_waiting=num_wanting - num_admitted,
        num_forgotten=num_forgotten,
        num_uncounted=num_uncounted,
        num_uses=num_uses,
        num_unknown_uses=num_rowless_uses - granted.num_uses,
    )


@dataclass(frozen=True)
class _Batch:
    """The ids of a batch that this rank owns, (U,) each."""

    ids: Int64
    """Ids, ascending."""
    counts: Int64
    """Uses in the batch."""
    totals: Int64
    """Uses so far, this batch included."""
    places: Int64
    """Their entries; -1 for new ids."""
    rowless: NDArray[np.bool_]
    """True for ids without a row."""


def _count_known(state: DynamicIdsState, seen: IdCounts) -> _Batch:
    """Count the uses of known ids and mark them as used at this step."""
    entries = state.entries
    places, _ = entries.index.find(seen.ids)
    known = np.flatnonzero(places >= 0)
    held = places[known]
    totals = seen.counts.copy()
    totals[known] += counts_at(state, held, state.step)
    entries.counts[held] = totals[known]
    entries.last_used[held] = state.step
    return _Batch(seen.ids, seen.counts, totals, places, entries.rows[places] == NO_ROW)


def _most_seen(places: Int64, totals: Int64) -> Int64:
    """Return places ordered by total, the most seen first. `places` ascend with the ids, so a stable sort breaks ties by id."""
    return places[np.argsort(-totals[places], kind="stable")]


@dataclass(frozen=True)
class _Granted:
    """The rows that pass to ids at a step. All but `own_rows` and `own_generations` are the same on every rank."""

    ids: Int64
    """(A,) admitted ids of all ranks, in order."""
    rows: Int64
    """(A,) their rows."""
    generations: Int64
    """(A,) generations of the rows."""
    evicted_ids: Int64
    """(E,) ids that had the last E rows before."""
    num_promoted: int
    """Admitted ids that were candidates."""
    num_uses: int
    """Uses of the admitted ids in the batch."""
    own_rows: Int64
    """(a,) rows of the first ids that want one on this rank."""
    own_generations: Int64
    """(a,) generations of these rows."""


def _grant_rows(state: DynamicIdsState, batch: _Batch, wanting: Int64, num_wanting: int) -> _Granted:
    """Take rows for the ids that want one, the most seen first, and evict the ids that had them. Collective.

    Args:
        state: The state; rows are marked as used, and evicted ids are removed.
        batch: The ids of the batch.
        wanting: Places in the batch of this rank's ids that want a row, in order.
        num_wanting: Number of such ids of all ranks.
    """
    if num_wanting == 0:
        none = np.empty(0, np.int64)
        return _Granted(none, none, none, none, 0, 0, none, none)
    num_fresh = min(num_wanting, state.config.num_rows - state.num_rows_used)
    first_row = state.num_rows_used
    state.num_rows_used += num_fresh
    evicted, num_evicted = _evict(state, num_wanting - num_fresh)
    order_of = np.stack((-batch.totals[wanting], batch.ids[wanting]))
    if num_fresh + num_evicted < num_wanting:
        count, _ = num_among_smallest(order_of, num_fresh + num_evicted, state.world)
        wanting = wanting[:count]
    was_candidate = (batch.places[wanting] >= 0).astype(np.int64)
    admitted = _Columns((*order_of[:, : wanting.size], batch.counts[wanting], was_candidate), num_keys=2)
    (admitted_columns, own), (evicted_columns, _) = _in_order((admitted, evicted), state.world)
    _, ids, counts, promoted = admitted_columns
    *_, evicted_ids, evicted_rows, evicted_generations = evicted_columns
    rows = np.concatenate((np.arange(first_row, first_row + num_fresh, dtype=np.int64), evicted_rows))
    generations = np.concatenate((np.zeros(num_fresh, np.int64), evicted_generations))
    return _Granted(
        ids, rows, generations, evicted_ids, int(promoted.sum()), int(counts.sum()), rows[own], generations[own]
    )


@dataclass(frozen=True)
class _Columns:
    """Columns of this rank, to be gathered in an order of all ranks."""

    values: tuple[Int64, ...]
    """(n,) each."""
    num_keys: int
    """The first so many columns are the key, most significant first."""


def _evict(state: DynamicIdsState, num: int) -> tuple[_Columns, int]:
    """Evict at most `num` ids of all ranks. Collective.

    Returns this rank's part in columns, of which the last three are ids, their rows, and the next generations of these, and the
    number of all.
    """
    config = state.config
    entries = state.entries
    min_age = config.max_age_steps if config.evict == "age" else 1
    sweep = _sweep(state, True, lambda idle: row_keys(state, idle, state.step))
    taken = state.row_queue.take(num, state.step, entries.last_used, state.step - min_age, sweep, state.world)
    evicted = taken.entries
    columns = (*taken.keys, entries.rows[evicted], entries.generations[evicted] + np.int64(1))
    entries.remove(evicted)
    return _Columns(columns, len(taken.keys)), taken.num_of_all


def _in_order(tables: Sequence[_Columns], world: World) -> list[tuple[list[Int64], Int64]]:
    """Gather columns from all ranks in the order of their keys. Returns them, and the places of this rank's values. Collective.

    Only the size of this exchange grows with the global batch: with the ids that are admitted at a step, which every rank needs
    because it may hold their rows.
    """
    sizes = world.gather_numbers([table.values[0].size for table in tables])
    own = torch.from_numpy(np.concatenate([np.stack(table.values).reshape(-1) for table in tables]))
    widths = [len(table.values) for table in tables]
    lengths = [sum(width * size for width, size in zip(widths, of_rank, strict=True)) for of_rank in sizes]
    pieces = [piece.cpu().numpy() for piece in world.gather_sized(own.to(world.device), lengths)]
    gathered = []
    begins = [0] * world.world_size
    for number, table in enumerate(tables):
        blocks = []
        for rank, piece in enumerate(pieces):
            end = begins[rank] + widths[number] * sizes[rank][number]
            blocks.append(piece[begins[rank] : end].reshape(widths[number], sizes[rank][number]))
            begins[rank] = end
        columns = np.concatenate(blocks, axis=1)
        order = np.lexsort(columns[: table.num_keys][::-1])
        places = np.empty(order.size, np.int64)
        places[order] = np.arange(order.size)
        first = sum(of_rank[number] for of_rank in sizes[: world.rank])
        gathered.append((list(columns[:, order]), places[first : first + table.values[0].size]))
    return gathered


def _give_rows(state: DynamicIdsState, batch: _Batch, wanting: Int64, granted: _Granted) -> None:
    """Give this rank's admitted ids, the first of `wanting`, their rows."""
    entries = state.entries
    admitted = wanting[: granted.own_rows.size]
    homes = batch.places[admitted].copy()
    new = admitted[homes < 0]
    homes[homes < 0] = entries.add(batch.ids[new], batch.totals[new], state.step)
    entries.rows[homes] = granted.own_rows
    entries.generations[homes] = granted.own_generations
    state.num_candidates -= granted.num_promoted


def _count_candidates(state: DynamicIdsState, batch: _Batch, unplaced: Int64, num_unplaced: int) -> tuple[int, int]:
    """Count new ids as candidates, and forget others for them if there is no place. Collective.

    Args:
        state: The state, which gets the candidates.
        batch: The ids of the batch.
        unplaced: Places in the batch of this rank's new ids without a row.
        num_unplaced: Number of such ids of all ranks.

    Returns:
        The numbers of candidates of all ranks that were forgotten, and of new ids that found no place.
    """
    entries = state.entries
    num_free = min(num_unplaced, state.config.max_candidates - state.num_candidates)
    num_forgotten = 0
    if num_unplaced > num_free:
        sweep = _sweep(state, False, lambda idle: candidate_keys(state, idle))
        forgotten = state.candidate_queue.take(
            num_unplaced - num_free, state.step, entries.last_used, state.step - 1, sweep, state.world
        )
        entries.remove(forgotten.entries)
        num_forgotten = forgotten.num_of_all
    num_places = num_free + num_forgotten
    if num_unplaced > num_places:
        unplaced = _most_seen(unplaced, batch.totals)
        order_of = np.stack((-batch.totals[unplaced], batch.ids[unplaced]))
        count, _ = num_among_smallest(order_of, num_places, state.world)
        unplaced = unplaced[:count]
    entries.add(batch.ids[unplaced], batch.totals[unplaced], state.step)
    state.num_candidates += num_free
    return num_forgotten, num_unplaced - num_places


def _sweep(state: DynamicIdsState, with_row: bool, order: Callable[[Int64], list[Int64]]) -> Callable[[int], Offer]:
    """Return the sweep of EvictionQueue.take over ids with a row, or over candidates: the first ones to evict on this rank."""

    def sweep(most: int) -> Offer:
        idle = state.entries.used(with_row, before=state.step)
        keys = order(idle)
        chosen = smallest(keys, most)
        return Offer(idle[chosen], np.stack([key[chosen] for key in keys]), has_more=idle.size > most)

    return sweep
