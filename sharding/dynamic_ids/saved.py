"""The saved form of a mapping of dynamic ids: arrays over all rows and candidates, whatever the number of ranks.

Place 0 .. num_rows - 1 are the table's rows, those after them candidates by hash. A count of 0 marks a free place. So equal
mappings are saved as equal arrays. Each rank saves and loads one block of every array. Between blocks and owners of ids, entries
travel directly from rank to rank, so no rank holds more than its share. Earlier versions saved the same arrays from one rank, so
their checkpoints load the same way.

Queues of evictions are saved as sets of places, by hash too. Their order follows from the entries themselves.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.block_tensors import Blocks
from sharding.dynamic_ids.entries import NO_ROW
from sharding.dynamic_ids.eviction import EvictionQueue
from sharding.dynamic_ids.owners import hashes_of, owners_of, route_to
from sharding.dynamic_ids.state import DynamicIdsState, candidate_keys, new_state, row_keys
from sharding.world import ALONE, World

Int64 = NDArray[np.int64]


def state_tensors(state: DynamicIdsState) -> dict[str, Tensor]:
    """Return a copy of the state as int64 tensors, with shapes that depend on the config alone. Collective.

    All but `numbers` are divided into blocks over ranks. To load a checkpoint, load it into the tensors of a new state and build
    the state from them by `from_tensors`.
    """
    config, world, entries = state.config, state.world, state.entries
    num_places = config.num_rows + config.max_candidates
    with_row = entries.used(with_row=True)
    waiting = _by_hash(state, entries.used(with_row=False))
    first = sum(world.gather_ints(waiting.size)[: world.rank])
    used = np.concatenate((with_row, waiting))
    places = np.concatenate((entries.rows[with_row], config.num_rows + first + np.arange(waiting.size)))

    blocks = Blocks(num_places, world)
    ids, counts, last_used = blocks.collect(places, (entries.ids[used], entries.counts[used], entries.last_used[used]))
    row_blocks = Blocks(config.num_rows, world)
    (generations,) = row_blocks.collect(entries.rows[with_row], (entries.generations[with_row].astype(np.int64),))
    free_blocks = Blocks(config.max_candidates, world)
    place_of = np.zeros(entries.ids.size, np.int64)
    place_of[used] = places
    row_queue, row_marks = _saved_queue(state, state.row_queue, place_of)
    candidate_queue, candidate_marks = _saved_queue(state, state.candidate_queue, place_of)
    num_free = config.max_candidates - state.num_candidates
    return {
        "ids": blocks.tensor(ids),
        "counts": blocks.tensor(counts),
        "last_used": blocks.tensor(last_used),
        "generations": row_blocks.tensor(generations),
        # For earlier versions: a stack, of which the first num_free places are free.
        "free_places": free_blocks.tensor(num_places - 1 - np.arange(*free_blocks.own_bounds)),
        "row_queue": row_queue,
        "candidate_queue": candidate_queue,
        "numbers": torch.tensor([state.step, state.num_rows_used, num_free, *row_marks, *candidate_marks]),
    }


def _by_hash(state: DynamicIdsState, entries: Int64) -> Int64:
    """Return entries in the order of their hashes, in which those of a rank follow those of the rank before."""
    return entries[np.argsort(hashes_of(state.entries.ids[entries]))]


def _saved_queue(state: DynamicIdsState, queue: EvictionQueue, place_of: Int64) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the places of a queue's entries, and its marks: the first, the end, and the step of the sweep. Collective."""
    members = place_of[_by_hash(state, queue.members(state.entries.last_used))]
    sizes = state.world.gather_ints(members.size)
    blocks = Blocks(queue.capacity, state.world)
    first = sum(sizes[: state.world.rank])
    (block,) = blocks.collect(first + np.arange(members.size), (members,))
    return blocks.tensor(block), (0, sum(sizes), queue.swept_at)


def from_tensors(config: DynamicIdsConfig, tensors: Mapping[str, Tensor], world: World = ALONE) -> DynamicIdsState:
    """Return the state of the result of `state_tensors`, which continues exactly like the saved one. Collective.

    The tensors may be divided over ranks, or whole on every rank. Raises ValueError if they have another number of rows or
    candidates.
    """
    state = new_state(config, world)
    blocks = Blocks(config.num_rows + config.max_candidates, world)
    sizes = {
        "ids": blocks.size,
        "counts": blocks.size,
        "last_used": blocks.size,
        "generations": config.num_rows,
        "row_queue": state.row_queue.capacity,
        "candidate_queue": state.candidate_queue.capacity,
    }
    for name, size in sizes.items():
        if tuple(tensors[name].size()) != (size,):
            raise ValueError(
                f"dynamic ids: {name} has {tensors[name].size().numel()} values where the config needs {size}; "
                "num_rows and max_candidates must be those that the state was saved with"
            )
    state.step, state.num_rows_used, num_free, *marks = (int(n) for n in tensors["numbers"].tolist())
    state.num_candidates = config.max_candidates - num_free
    ids, counts, last_used = (blocks.block_of(tensors[name]) for name in ("ids", "counts", "last_used"))
    queued = np.zeros(ids.size, np.bool_)
    for name, (head, end, swept_at) in (("row_queue", marks[:3]), ("candidate_queue", marks[3:])):
        members = _members(blocks, tensors[name], head, end)
        queued[members[last_used[members] < swept_at]] = True  # others were used since, or evicted
    used = np.flatnonzero(counts)
    rows = blocks.own_bounds[0] + used
    rows[rows >= config.num_rows] = NO_ROW
    generations = _generations_of(rows, tensors["generations"], config.num_rows, world)
    route = route_to(owners_of(ids[used], world.world_size), world)
    columns = route.send(ids[used], counts[used], last_used[used], rows, generations, queued[used].astype(np.int64))
    ids, counts, last_used, rows, generations, is_queued = columns
    entries = state.entries.add(ids, counts, last_used)
    state.entries.rows[entries] = rows
    state.entries.generations[entries] = generations
    is_row = rows != NO_ROW
    _fill(state.row_queue, entries[is_row & (is_queued > 0)], marks[2], lambda held: row_keys(state, held, marks[2]))
    _fill(state.candidate_queue, entries[~is_row & (is_queued > 0)], marks[5], lambda held: candidate_keys(state, held))
    return state


def _members(blocks: Blocks, queue: Tensor, head: int, end: int) -> Int64:
    """Return the places of queue[head:end], of this rank's block and relative to its begin. Collective."""
    of_queue = Blocks(queue.size().numel(), blocks.world)
    first = of_queue.own_bounds[0]
    own = of_queue.block_of(queue)[max(0, head - first) : max(0, end - first)]
    (places,) = route_to(blocks.ranks_of(own), blocks.world).send(own)
    return places - blocks.own_bounds[0]


def _generations_of(rows: Int64, generations: Tensor, num_rows: int, world: World) -> Int64:
    """Return the generation of each row, and 0 for NO_ROW, from the ranks that hold its block. Collective."""
    blocks = Blocks(num_rows, world)
    held = rows != NO_ROW
    route = route_to(blocks.ranks_of(rows[held]), world)
    (asked,) = route.send(rows[held])
    answers = np.zeros(rows.size, np.int64)
    answers[held] = route.answer(blocks.block_of(generations)[asked - blocks.own_bounds[0]])
    return answers


def _fill(queue: EvictionQueue, entries: Int64, swept_at: int, keys_of: Callable[[Int64], list[Int64]]) -> None:
    """Let a queue hold entries, in the order that they had at the sweep."""
    keys = np.stack(keys_of(entries))
    order = np.lexsort(keys[::-1])
    queue.entries = entries[order]
    queue.keys = keys[:, order]
    queue.swept_at = swept_at
