"""The streaming frequency estimate: the paper's recursion, close to the truth, quick to follow, exact to resume."""

import numpy as np
import pytest

from sharding.dynamic_ids.id_counts import IdCounts, count_ids
from trainer.global_batch.item_frequency import TargetFrequency

NUM_IDS = 101
IDS = np.arange(1, NUM_IDS)


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
        estimate.observe(count_ids(np.asarray([item])))
        if item == 1:
            seen += 1
            weight = max(0.25, 1 / seen)
            gap += weight * (step - last - gap)
            last = step
        if seen:
            assert estimate.share_of(np.asarray([1]))[0] == pytest.approx(1 / gap)


@pytest.mark.parametrize(
    "size", [3, 50, 3000]
)  # most items in few batches; the frequent in most; the frequent many times in each
def test_it_approaches_the_true_shares(size):
    share, batches = zipf_batches(200_000 // size, size, seed=2)
    estimate = TargetFrequency(NUM_IDS, 0.01)
    for batch in batches:
        estimate.observe(batch)
    error = np.log(estimate.share_of(IDS) / share)
    assert np.abs(error).mean() < 0.08
    assert abs(error.mean()) < 0.03


def test_it_is_better_than_a_uniform_guess_after_few_batches():
    share, batches = zipf_batches(5, 200, seed=3)
    estimate = TargetFrequency(NUM_IDS, 0.01)
    common = IDS[:10]
    before = np.abs(np.log(estimate.share_of(common) / share[:10])).mean()
    for batch in batches:
        estimate.observe(batch)
    assert np.abs(np.log(estimate.share_of(common) / share[:10])).mean() < before / 4


def test_it_follows_changes_of_the_shares():
    _, batches = zipf_batches(300, 200, seed=4)
    share, later = zipf_batches(600, 200, seed=5, descending=True)
    estimate = TargetFrequency(NUM_IDS, 0.05)
    for batch in batches + later:
        estimate.observe(batch)
    assert np.abs(np.log(estimate.share_of(IDS) / share)).mean() < 0.2


def test_items_that_were_never_seen_are_assumed_to_be_average():
    estimate = TargetFrequency(NUM_IDS, 0.01)
    estimate.observe(count_ids(np.asarray([5, 5, 7])))
    np.testing.assert_allclose(estimate.share_of(np.asarray([1, 5, 7])), [1 / 100, 2 / 3, 1 / 3])


def test_a_batch_without_targets_changes_nothing():
    estimate = TargetFrequency(NUM_IDS, 0.01)
    before = estimate.share_of(IDS).copy()
    estimate.observe(IdCounts(np.zeros(0, np.int64), np.zeros(0, np.int64)))
    assert np.array_equal(estimate.share_of(IDS), before)


def test_it_resumes_exactly():
    _, batches = zipf_batches(60, 40, seed=6)
    whole, first, second = (TargetFrequency(NUM_IDS, 0.02) for _ in range(3))
    for batch in batches:
        whole.observe(batch)
    for batch in batches[:25]:
        first.observe(batch)
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    first.observe(batches[3])  # what was saved is not what continues
    second.load(saved)
    for batch in batches[25:]:
        second.observe(batch)
    assert np.array_equal(second.share_of(IDS), whole.share_of(IDS))
