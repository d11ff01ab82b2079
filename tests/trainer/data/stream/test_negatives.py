"""Draws of negatives: functions of seed and place, of the distribution that they say they have."""

from typing import Any

import numpy as np
import pytest

from models.objectives.config import SampledSoftmaxConfig
from sharding.dynamic_ids.id_counts import IdCounts, count_ids
from trainer.data.stream.negatives import NegativeDraws, needs_target_counts, needs_train_events
from trainer.data.stream.order import Position

NUM_KNOWN = 9
TRAIN_EVENTS = np.asarray([0, 1, 1, 2, 4, 8, 16, 32, 64])
TARGETS = count_ids(np.asarray([3, 3, 3, 8, 5, 3, 8, 1]))
NOTHING = np.zeros(0, np.int64)
START = Position(0, 0)
KINDS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform"},
    "popularity": {"kind": "popularity", "power": 0.5},
    "in_batch": {"kind": "in_batch"},
    "cross_rank": {"kind": "cross_rank"},
    "mixed": {"kind": "mixed", "uniform_share": 0.3},
}


def draws_of(kind: str, num: int = 10, seed: int = 7, logq: str = "counts") -> NegativeDraws:
    objective = SampledSoftmaxConfig.model_validate({"num_negatives": num, "negatives": KINDS[kind], "logq": logq})
    return NegativeDraws(objective, NUM_KNOWN, seed, TRAIN_EVENTS, TRAIN_EVENTS)


def drawn(draws: NegativeDraws, position: Position = START, targets: IdCounts = TARGETS) -> np.ndarray:
    """Return the negatives of all ranks."""
    if draws.from_global_batch:
        assert draws.ahead(position, np.repeat(targets.ids, targets.counts), 0).size == 0
        return draws.from_targets(position, targets)
    return draws.ahead(position, np.repeat(targets.ids, targets.counts), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_a_function_of_seed_and_place(kind):
    places = [Position(epoch, trained) for epoch in range(3) for trained in (0, 1, 64)]
    first = [drawn(draws_of(kind), place).tolist() for place in places]
    assert first == [drawn(draws_of(kind), place).tolist() for place in places]
    assert len({tuple(ids) for ids in first}) == len(places)
    assert first != [drawn(draws_of(kind, seed=8), place).tolist() for place in places]
    assert {len(ids) for ids in first} == {10}


def test_uniform_negatives_are_those_of_one_generator_for_each_place():
    """Bit for bit what runs of earlier versions drew."""
    expected = np.random.default_rng([7, 2, 2, 128]).integers(1, NUM_KNOWN, 10)
    assert drawn(draws_of("uniform"), Position(2, 128)).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_draws_from_the_catalogue_are_identical_on_every_rank(kind):
    draws = draws_of(kind)
    ids = [draws.ahead(Position(1, 5), np.arange(rank), rank).tolist() for rank in range(4)]
    assert ids.count(ids[0]) == 4


def test_in_batch_negatives_are_learned_targets_of_the_rank_itself():
    draws = draws_of("in_batch", num=200)
    targets = np.asarray([0, 4, 4, 4, 2, 0, 11], np.int32)  # unknown items, of either form, are not learned
    actual = draws.ahead(Position(0, 0), targets, rank=0)
    assert set(actual.tolist()) == {2, 4}
    assert 0.6 < (actual == 4).mean() < 0.9
    assert actual.tolist() != draws.ahead(Position(0, 0), targets, rank=1).tolist()
    assert draws.ahead(Position(0, 0), np.asarray([0, 0]), 0).size == 0


def test_negatives_of_the_global_batch_do_not_know_in_which_order_or_share_its_targets_came():
    draws = draws_of("cross_rank")
    shuffled = count_ids(np.asarray([8, 1, 3, 3, 8, 3, 5, 3]))
    assert drawn(draws).tolist() == drawn(draws, targets=shuffled).tolist()
    assert set(drawn(draws_of("cross_rank", num=500)).tolist()) == {1, 3, 5, 8}


@pytest.mark.parametrize("kind", ["cross_rank", "mixed"])
def test_without_targets_there_are_no_negatives(kind):
    assert drawn(draws_of(kind), targets=IdCounts(NOTHING, NOTHING)).size == 0


def test_a_mixture_has_its_share_of_uniform_negatives_first():
    actual = draws_of("mixed", num=1000).from_targets(Position(0, 0), count_ids(np.asarray([4])))
    assert (actual[300:] == 4).all()
    counts = np.bincount(actual[:300], minlength=NUM_KNOWN)
    assert counts[0] == 0
    assert (counts[1:] > 15).all()


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_sum_to_one_over_the_catalogue(kind):
    ids = np.arange(1, NUM_KNOWN)
    assert np.exp(draws_of(kind).log_q(ids)).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_the_draws(kind):
    """Where negatives come from targets, of targets that are as frequent as was counted."""
    draws, num = draws_of(kind, num=200_000), 200_000
    counts = np.bincount(drawn(draws, targets=IdCounts(np.arange(1, NUM_KNOWN), TRAIN_EVENTS[1:])), minlength=NUM_KNOWN)
    expected = num * np.exp(draws.log_q(np.arange(1, NUM_KNOWN)))
    assert counts[0] == 0
    np.testing.assert_array_less(np.abs(counts[1:] - expected), 5 * np.sqrt(expected))


def test_the_power_of_popularity():
    weights = np.exp(draws_of("popularity").log_q(np.asarray([4, 6])))
    assert weights[1] / weights[0] == pytest.approx(2.0)  # the square root of 16 / 4


def test_shares_may_come_from_elsewhere():
    draws = draws_of("mixed", num=10, logq="streaming")
    actual = draws.log_q(np.asarray([2, 5]), np.asarray([0.2, 0.5]))
    np.testing.assert_allclose(np.exp(actual), [0.3 / 8 + 0.7 * 0.2, 0.3 / 8 + 0.7 * 0.5])


@pytest.mark.parametrize(
    ("kind", "logq", "needed"),
    [
        ("uniform", "none", False),
        ("uniform", "counts", False),
        ("popularity", "none", True),
        ("in_batch", "counts", False),
        ("mixed", "streaming", False),
        ("cross_rank", "none", False),
    ],
)
def test_counts_are_read_where_they_are_used(kind, logq, needed):
    assert needs_train_events(draws_of(kind, logq=logq).objective) is needed


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_counted_where_draws_from_them_are_corrected_by_counts(kind):
    assert needs_target_counts(draws_of(kind, logq="counts").objective) is (kind in ("in_batch", "cross_rank", "mixed"))
    assert not needs_target_counts(draws_of(kind, logq="none").objective)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_a_probability_that_is_known_is_not_estimated(kind):
    with pytest.raises(ValueError, match='choose logq = "counts"'):
        draws_of(kind, logq="streaming")
