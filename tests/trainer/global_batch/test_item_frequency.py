"""The streaming frequency estimate: the paper's recursion, close to the truth, quick to follow, exact to resume."""

from pathlib import Path

import numpy as np
import pytest
from torch.distributed import checkpoint as dcp

from sharding.dynamic_ids.id_counts import IdCounts, count_ids
from sharding.world import World
from trainer.global_batch.item_frequency import TargetFrequency

NUM_IDS = 101
IDS = np.arange(1, NUM_IDS)
NOTHING = np.zeros(0, np.int64)


def shares_of(estimate: TargetFrequency, ids: np.ndarray) -> np.ndarray:
    return estimate.observe(IdCounts(NOTHING, NOTHING), ids)


def zipf_batches(num: int, size: int, seed: int, descending: bool = False) -> tuple[np.ndarray, list[IdCounts]]:
    """Return (the share of every item but 0, batches of targets drawn by it)."""
    share = 1.0 / IDS if not descending else 1.0 / IDS[::-1]
    share = share / share.sum()
    random = np.random.default_rng(seed)
    return share, [count_ids(random.choice(IDS, size=size, p=share)) for _ in range(num)]


def test_it_equals_the_recursion_of_the_paper_for_rare_items():
    """One target at a time, after the first 1 / rate occurrences."""
    estimate, gap, last, seen = TargetFrequency(4, 0.25), 0.0, 0, 0
    random = np.random.default_rng(1)
    for step in range(1, 200):
        item = int(random.choice([1, 2, 3], p=[0.2, 0.5, 0.3]))
        estimate.observe(count_ids(np.asarray([item])), NOTHING)
        if item == 1:
            seen += 1
            weight = max(0.25, 1 / seen)
            gap += weight * (step - last - gap)
            last = step
        if seen:
            assert shares_of(estimate, np.asarray([1]))[0] == pytest.approx(1 / gap)


@pytest.mark.parametrize(
    "size", [3, 50, 3000]
)  # most items in few batches; the frequent in most; the frequent many times in each
def test_it_approaches_the_true_shares(size):
    share, batches = zipf_batches(200_000 // size, size, seed=2)
    estimate = TargetFrequency(NUM_IDS, 0.01)
    for batch in batches:
        estimate.observe(batch, NOTHING)
    error = np.log(shares_of(estimate, IDS) / share)
    assert np.abs(error).mean() < 0.08
    assert abs(error.mean()) < 0.03


def test_it_is_better_than_a_uniform_guess_after_few_batches():
    share, batches = zipf_batches(5, 200, seed=3)
    estimate = TargetFrequency(NUM_IDS, 0.01)
    common = IDS[:10]
    before = np.abs(np.log(shares_of(estimate, common) / share[:10])).mean()
    for batch in batches:
        estimate.observe(batch, NOTHING)
    assert np.abs(np.log(shares_of(estimate, common) / share[:10])).mean() < before / 4


def test_it_follows_changes_of_the_shares():
    _, batches = zipf_batches(300, 200, seed=4)
    share, later = zipf_batches(600, 200, seed=5, descending=True)
    estimate = TargetFrequency(NUM_IDS, 0.05)
    for batch in batches + later:
        estimate.observe(batch, NOTHING)
    assert np.abs(np.log(shares_of(estimate, IDS) / share)).mean() < 0.2


def test_items_that_were_never_seen_are_assumed_to_be_average():
    estimate = TargetFrequency(NUM_IDS, 0.01)
    estimate.observe(count_ids(np.asarray([5, 5, 7])), NOTHING)
    np.testing.assert_allclose(shares_of(estimate, np.asarray([1, 5, 7])), [1 / 100, 2 / 3, 1 / 3])


def test_a_batch_without_targets_changes_nothing():
    estimate = TargetFrequency(NUM_IDS, 0.01)
    before = shares_of(estimate, IDS).copy()
    estimate.observe(IdCounts(np.zeros(0, np.int64), np.zeros(0, np.int64)), NOTHING)
    assert np.array_equal(shares_of(estimate, IDS), before)


def test_it_resumes_exactly():
    _, batches = zipf_batches(60, 40, seed=6)
    whole, first, second = (TargetFrequency(NUM_IDS, 0.02) for _ in range(3))
    for batch in batches:
        whole.observe(batch, NOTHING)
    for batch in batches[:25]:
        first.observe(batch, NOTHING)
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    first.observe(batches[3], NOTHING)  # what was saved is not what continues
    second.load(saved)
    for batch in batches[25:]:
        second.observe(batch, NOTHING)
    assert np.array_equal(shares_of(second, IDS), shares_of(whole, IDS))


def observe_shares(
    world: World, num_ids: int, batches: list[IdCounts], start: Path | None, end: Path
) -> tuple[list[list[float]], int]:
    """Observe uneven shares of batches, from the saved state in `start`; return the shares of all items and the bytes held."""
    estimate = TargetFrequency(num_ids, 0.02, world)
    if start is not None:
        tensors = estimate.tensors()
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(start))
        estimate.load(tensors)
    actual = []
    for step, batch in enumerate(batches):
        targets = np.repeat(batch.ids, batch.counts)
        draws = np.random.default_rng(step).integers(0, world.world_size + 1, targets.size)
        mine = count_ids(targets[draws % world.world_size == world.rank])
        # Ranks ask for different items, and at some steps for none.
        asked = np.arange(1, num_ids) if step % 3 != world.rank else NOTHING
        actual.append(estimate.observe(mine, asked).tolist())
    dcp.save(estimate.tensors(), storage_writer=dcp.FileSystemWriter(end))
    return actual, estimate.num_bytes


@pytest.mark.parametrize("num_ids", [NUM_IDS, 3])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 4), (4, 1), (3, 2)], ids=str)
def test_it_is_bit_identical_when_it_is_divided_over_ranks(rank_pool, tmp_path, num_ids, sizes):
    random = np.random.default_rng(8)
    batches = [count_ids(random.integers(1, num_ids, random.choice([0, 1, 40]))) for _ in range(20)]
    whole, start = TargetFrequency(num_ids, 0.02), None
    for number, size in enumerate(sizes):
        part = batches[10 * number : 10 * number + 10]
        end = tmp_path / str(number)
        everyone = rank_pool.run(size, observe_shares, num_ids, part, start, end)
        for step, batch in enumerate(part):
            expected = whole.observe(batch, np.arange(1, num_ids)).tolist()
            for rank, (actual, _) in enumerate(everyone):
                assert actual[step] == (expected if step % 3 != rank else [])
        assert sum(num_bytes for _, num_bytes in everyone) == 24 * num_ids
        assert max(num_bytes for _, num_bytes in everyone) == 24 * -(-num_ids // size)
        start = end


def test_it_continues_an_undivided_state_of_an_earlier_version(rank_pool, tmp_path):
    _, batches = zipf_batches(20, 40, seed=9)
    whole = TargetFrequency(NUM_IDS, 0.02)
    for batch in batches[:10]:
        whole.observe(batch, NOTHING)
    saved = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    dcp.save(saved, storage_writer=dcp.FileSystemWriter(tmp_path / "old"), no_dist=True)
    everyone = rank_pool.run(2, observe_shares, NUM_IDS, batches[10:], tmp_path / "old", tmp_path / "new")
    for step, batch in enumerate(batches[10:]):
        expected = whole.observe(batch, IDS).tolist()
        assert [actual[step] for actual, _ in everyone] == [[] if step % 3 == rank else expected for rank in range(2)]
