"""A mapping that is divided over ranks equals the whole mapping of earlier versions, in training, checkpoints and memory."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp

from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.block_tensors import Blocks
from sharding.dynamic_ids.entries import Entries
from sharding.dynamic_ids.id_counts import count_ids
from sharding.dynamic_ids.mapping import look_up_anywhere, observe_shares
from sharding.dynamic_ids.owners import owners_of
from sharding.dynamic_ids.saved import from_tensors, state_tensors
from sharding.dynamic_ids.state import new_state
from sharding.tables.local_shards import local_shards
from sharding.world import World
from tests.sharding.dynamic_ids import whole_map
from tests.sharding.dynamic_ids.test_mapping import (
    CONFIGS,
    all_new,
    batches,
    content,
    crowded,
    extremes,
    plain,
    returning,
    same,
    skewed,
)

LARGE = DynamicIdsConfig(num_rows=3000, admit_after=1, evict="use", half_life_steps=4, max_candidates=2000)


def many(rng: np.random.Generator) -> list[np.ndarray]:
    """Return batches that change more rows than a rank gives samples of, with ids that one rank alone holds among them."""
    ids = rng.integers(-(2**62), 2**62, 40_000)
    of_first = ids[owners_of(ids, 4) == 0]
    steps: list[np.ndarray] = []
    for step in range(12):
        chosen = rng.choice(ids[: 4000 + 2000 * step], rng.choice([0, 200, 6000]))
        steps.append(np.concatenate((chosen, of_first[500 * step : 500 * step + 900])))
    return steps


def share_of(batch: np.ndarray, step: int, world: World) -> np.ndarray:
    """Return this rank's uneven share of a batch; some ranks have none at some steps."""
    draws = np.random.default_rng(step).integers(0, world.world_size + 1, batch.size)
    return batch[draws % world.world_size == world.rank]


def whole_of(tensors: dict[str, Tensor]) -> dict[str, list[tuple[int, list[int]]]]:
    """Return the parts of tensors on this rank, with the first number of each."""
    return {
        name: [(shard.first_row, shard.tensor.tolist()) for shard in local_shards(tensor)]
        for name, tensor in tensors.items()
    }


def joined(parts: list[dict[str, list[tuple[int, list[int]]]]]) -> dict[str, Tensor]:
    """Return the whole tensors, from the parts of all ranks."""
    whole = {}
    for name in parts[0]:
        # A part that several ranks have is a copy.
        by_first = {first: numbers for of_rank in parts for first, numbers in of_rank[name]}
        whole[name] = torch.from_numpy(np.asarray([number for first in sorted(by_first) for number in by_first[first]]))
    return whole


def run_shares(
    world: World, config: DynamicIdsConfig, run: list[np.ndarray], reload_at: int | None = None
) -> tuple[object, ...]:
    """Return the changes of each step, the rows of this rank's share at each step, and its part of the state."""
    state, changes, rows = new_state(config, world), [], []
    for step, batch in enumerate(run):
        if step == reload_at:
            state = from_tensors(config, state_tensors(state), world)
        mine = share_of(batch, step, world)
        changed, after = observe_shares(state, count_ids(mine), mine)
        assert np.array_equal(look_up_anywhere(state, mine).rows, after)
        changes.append(plain(changed))
        rows.append(dict(zip(mine.tolist(), after.tolist(), strict=True)))
    return changes, rows, whole_of(state_tensors(state))


def expect_whole(config: DynamicIdsConfig, run: list[np.ndarray], everyone: list[tuple[object, ...]]) -> None:
    """Compare what ranks returned with the mapping of earlier versions."""
    whole = whole_map.new_map(config)
    for step, batch in enumerate(run):
        expected = plain(whole_map.observe(whole, count_ids(batch)))
        for changes, _, _ in everyone:
            assert expected.items() <= changes[step].items()  # type: ignore[index]
        row_of = dict(zip(batch.tolist(), whole_map.look_up(whole, batch).rows.tolist(), strict=True))
        unknown = sum(row_of[one] == 0 for one in batch.tolist())
        assert everyone[0][0][step]["num_unknown_uses"] == unknown  # type: ignore[index]
        assert {one: row for _, rows, _ in everyone for one, row in rows[step].items()} == row_of  # type: ignore[index]
    saved = joined([parts for _, _, parts in everyone])  # type: ignore[misc]
    assert content(config, saved) == content(config, whole_map.state_tensors(whole))


# Each stream meets each settings on 2 or on 4 ranks; a collective takes long where processes share a core.
STREAMS = [skewed, crowded, returning, all_new, extremes]
CASES = [
    pytest.param(world_size, stream, config, id=f"{world_size}-{stream.__name__}-{j}")
    for i, stream in enumerate(STREAMS)
    for j, config in enumerate(CONFIGS[:7])
    for world_size in (1, 2, 4)
    if world_size == 1 or ((i + j) % 2 == 0) == (world_size == 4)
]


@pytest.mark.parametrize(("world_size", "stream", "config"), CASES)
def test_equals_the_whole_mapping(rank_pool, world_size, stream, config):
    run = batches(stream)[:24]
    expect_whole(config, run, rank_pool.run(world_size, run_shares, config, run, 13))


@pytest.mark.parametrize("evict", ["age", "use"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_equals_the_whole_mapping_when_samples_do_not_hold_all_keys(rank_pool, world_size, evict):
    config = LARGE.model_copy(update={"evict": evict, "max_age_steps": 2})
    run = many(np.random.default_rng(3))
    expect_whole(config, run, rank_pool.run(world_size, run_shares, config, run, 7))


@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[3]], ids=str)
def test_the_saved_arrays_do_not_depend_on_the_number_of_ranks(rank_pool, config):
    run = batches(skewed)[:25]
    saved = [joined([parts for _, _, parts in rank_pool.run(size, run_shares, config, run)]) for size in (1, 2, 4)]
    for other in saved[1:]:
        assert same(other, saved[0])


def save_then(world: World, config: DynamicIdsConfig, run: list[np.ndarray], start: Path | None, end: Path) -> object:
    """Continue the saved state in `start`, or begin, and save the state after the batches in `end`."""
    state = new_state(config, world)
    if start is not None:
        tensors = state_tensors(state)
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(start))
        state = from_tensors(config, tensors, world)
    for step, batch in enumerate(run):
        observe_shares(state, count_ids(share_of(batch, step, world)), np.empty(0, np.int64))
    dcp.save(state_tensors(state), storage_writer=dcp.FileSystemWriter(end))
    return whole_of(state_tensors(state))


@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[3], CONFIGS[4]], ids=str)
@pytest.mark.parametrize("sizes", [(4, 1, 2), (1, 4, 4), (3, 2, 1)], ids=str)
def test_a_checkpoint_continues_on_another_number_of_ranks(rank_pool, tmp_path, sizes, config):
    run = batches(crowded)[:30]
    whole, start = whole_map.new_map(config), None
    for number, size in enumerate(sizes):
        part = run[10 * number : 10 * number + 10]
        end = tmp_path / str(number)
        saved = joined(rank_pool.run(size, save_then, config, part, start, end))
        for batch in part:
            whole_map.observe(whole, count_ids(batch))
        assert content(config, saved) == content(config, whole_map.state_tensors(whole))
        start = end


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3]], ids=str)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_checkpoint_of_an_earlier_version_continues(rank_pool, tmp_path, world_size, config):
    run = batches(skewed)
    whole = whole_map.new_map(config)
    for batch in run[:20]:
        whole_map.observe(whole, count_ids(batch))
    dcp.save(whole_map.state_tensors(whole), storage_writer=dcp.FileSystemWriter(tmp_path / "old"), no_dist=True)
    for batch in run[20:40]:
        whole_map.observe(whole, count_ids(batch))
    saved = joined(rank_pool.run(world_size, save_then, config, run[20:40], tmp_path / "old", tmp_path / "new"))
    assert content(config, saved) == content(config, whole_map.state_tensors(whole))


def filled(world: World, config: DynamicIdsConfig) -> tuple[int, int]:
    """Return the bytes of this rank's part of a full mapping, and the number of ids that it holds."""
    state = new_state(config, world)
    for numbers in np.array_split(np.arange(config.num_rows + config.max_candidates), 4):
        ids = numbers * np.int64(0x1E3779B97F4A7C15)
        twice = ids[numbers < config.num_rows - 1]
        observe_shares(state, count_ids(share_of(np.concatenate((ids, twice)), 1, world)), np.empty(0, np.int64))
    return state.num_bytes, state.entries.used(True).size + state.entries.used(False).size


@pytest.mark.parametrize("num_rows", [2**16, 50_000])
def test_memory_falls_with_the_number_of_ranks(rank_pool, num_rows):
    config = DynamicIdsConfig(num_rows=num_rows, admit_after=2, max_age_steps=1, max_candidates=num_rows)
    ((alone, num_ids),) = rank_pool.run(1, filled, config)
    for world_size in (2, 4):
        parts = rank_pool.run(world_size, filled, config)
        assert sum(held for _, held in parts) == num_ids
        assert max(size for size, _ in parts) < 1.05 * alone / world_size


def test_memory_at_a_thousand_ranks_is_a_thousandth():
    config = DynamicIdsConfig(num_rows=10_000_000, max_candidates=10_000_000)
    part = new_state(config, World(1000, 1024, torch.device("cpu"))).num_bytes
    assert part < 1.05 * new_state(config, World(1000, 128, torch.device("cpu"))).num_bytes / 8


@pytest.mark.parametrize("size", [0, 1, 5, 1023, 1025, 10**6])
def test_blocks_of_a_thousand_ranks_hold_every_place_once(size):
    blocks = [Blocks(size, World(rank, 1024, torch.device("cpu"))) for rank in range(1024)]
    bounds = [of_rank.own_bounds for of_rank in blocks]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(end == first for (_, end), (first, _) in pairwise(bounds))
    holders = blocks[0].ranks_of(np.arange(size))
    assert all((holders[first:end] == rank).all() for rank, (first, end) in enumerate(bounds))


def test_a_rank_that_owns_more_than_its_share_grows():
    """Ids of one rank only: its arrays and its index grow, and ids keep what they have."""
    entries = Entries(4000, 4)
    before = entries.num_bytes
    ids = np.arange(4000, dtype=np.int64) * 7919
    held = np.concatenate([entries.add(part, part + 1, 3) for part in np.array_split(ids, 9)])
    assert np.array_equal(entries.index.find(ids)[0], held)
    assert np.array_equal(np.sort(held), np.unique(held))
    entries.remove(held[::2])
    again = entries.add(ids[::2], ids[::2], 4)
    assert set(again.tolist()) == set(held[::2].tolist())
    assert np.array_equal(entries.index.find(ids)[0][1::2], held[1::2])
    assert np.array_equal(entries.counts[held[1::2]], ids[1::2] + 1)
    assert entries.num_bytes < 6 * before


def test_ids_are_spread_evenly_over_many_ranks():
    for ids in (np.arange(10**6), np.arange(10**6) << 40, np.arange(10**6) * 1024, -np.arange(10**6)):
        for world_size in (1, 3, 1024):
            sizes = np.bincount(owners_of(ids.astype(np.int64), world_size), minlength=world_size)
            assert sizes.size == world_size
            assert sizes.max() < sizes.mean() + 5 * sizes.mean() ** 0.5


def test_the_owner_of_an_id_never_changes():
    """Other machines and later versions must agree, since checkpoints are divided by it."""
    ids = np.asarray([0, 1, -1, 2**63 - 1, -(2**63), 10**12], np.int64)
    assert owners_of(ids, 7).tolist() == [6, 3, 6, 1, 1, 6]
