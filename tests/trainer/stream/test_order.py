"""The order of training: a permutation per epoch, the same for any number of ranks, to be entered anywhere."""

import numpy as np
import pytest

from trainer.stream import order as order_module
from trainer.stream.order import EpochOrder, Places, Position, position_of, steps_per_epoch

# Unequal row groups; fewer groups than streams, exactly as many, and more than the 64 streams at most.
SHAPES = {
    "one group": (17,),
    "one row": (1,),
    "unequal": (1, 9, 3, 3, 14, 2, 7),
    "equal": (5,) * 8,
    "many groups": tuple(np.random.default_rng(0).integers(1, 5, size=150).tolist()),
}
shapes = pytest.mark.parametrize("group_rows", SHAPES.values(), ids=SHAPES)


def triples(places: Places) -> list[tuple[int, int, int]]:
    return list(zip(places.position.tolist(), places.group.tolist(), places.place.tolist(), strict=True))


def every_row(group_rows: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(group, row) for group, count in enumerate(group_rows) for row in range(count)]


def over_ranks(order: EpochOrder, start: int, stop: int, world_size: int) -> list[tuple[int, int, int]]:
    return sorted(t for rank in range(world_size) for t in triples(order.places(start, stop, rank, world_size)))


@shapes
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_is_a_permutation_of_all_rows(group_rows, epoch):
    order = EpochOrder(group_rows, seed=3, epoch=epoch)
    rows = order.places(0, order.num_examples, 0, 1)
    assert rows.position.tolist() == list(range(sum(group_rows)))
    assert sorted(zip(rows.group.tolist(), rows.place.tolist(), strict=True)) == every_row(group_rows)


@shapes
@pytest.mark.parametrize("world_size", [2, 3, 4, 8, 100])
def test_every_batch_is_the_same_for_any_number_of_ranks(group_rows, world_size):
    """With 100 ranks there are more ranks than streams."""
    order = EpochOrder(group_rows, seed=3, epoch=1)
    whole = triples(order.places(0, order.num_examples, 0, 1))
    for start in range(0, order.num_examples, 8):
        assert over_ranks(order, start, start + 8, world_size) == whole[start : start + 8]


@shapes
def test_a_rank_reads_its_own_streams_only(group_rows):
    order = EpochOrder(group_rows, seed=3, epoch=1)
    _, stream, _ = order.streams(0, order.num_examples)
    for rank in range(3):
        assert set((stream[order.places(0, order.num_examples, rank, 3).position] % 3).tolist()) <= {rank}


@shapes
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_position_can_be_entered(group_rows, world_size):
    order = EpochOrder(group_rows, seed=5, epoch=2)
    whole = triples(order.places(0, order.num_examples, 0, 1))
    for start in range(order.num_examples + 1):
        fresh = EpochOrder(group_rows, seed=5, epoch=2)
        assert over_ranks(fresh, start, order.num_examples, world_size) == whole[start:]


def test_a_stretch_beyond_the_end_is_cut_there():
    order = EpochOrder((3, 4), seed=1, epoch=0)
    assert triples(order.places(5, 100, 0, 1)) == triples(order.places(5, 7, 0, 1))
    assert triples(order.places(7, 9, 0, 1)) == []


def test_the_order_changes_with_epoch_and_seed_and_nothing_else():
    def sequence(seed: int, epoch: int) -> list[tuple[int, int, int]]:
        return triples(EpochOrder(SHAPES["unequal"], seed, epoch).places(0, 39, 0, 1))

    assert sequence(1, 0) == sequence(1, 0)
    assert len({tuple(sequence(seed, epoch)) for seed in (1, 2, 3) for epoch in (0, 1, 2)}) == 9


def test_row_groups_too_are_permuted_by_seed_and_epoch():
    def groups(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(EpochOrder(SHAPES["many groups"], seed, epoch).places(0, 64, 0, 1).group.tolist())

    assert len({groups(seed, epoch) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_rows_are_permuted_within_a_group_that_stays_in_its_place():
    """One group: only the permutation of rows is left to change."""
    first, second = (EpochOrder((40,), 1, epoch).places(0, 40, 0, 1).place.tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != list(range(40))


def test_groups_are_dealt_anew_each_epoch(monkeypatch):
    monkeypatch.setattr(order_module, "MAX_STREAMS", 1)
    first, second = (EpochOrder((1,) * 30, 1, epoch).places(0, 30, 0, 1).group.tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


def test_streams_take_turns_and_those_that_ended_are_passed_over():
    order = EpochOrder((1, 3, 2), seed=1, epoch=0)
    _, stream, index = order.streams(0, 6)
    rows = order.places(0, 6, 0, 1)
    assert index.tolist() == [0, 0, 0, 1, 1, 2]
    assert sorted(stream[:3].tolist()) == [0, 1, 2]
    assert rows.group[index == 1].tolist() == [group for group in rows.group[:3].tolist() if group != 0]
    assert rows.group[5] == 1


def test_rows_of_one_group_are_spread_over_the_epoch():
    """What the streams are for: neighbours in a file do not meet in one batch."""
    order = EpochOrder((20,) * 32, seed=1, epoch=0)
    for start in range(0, 640, 32):
        assert len(set(order.places(start, start + 32, 0, 1).group.tolist())) == 32


# Positions


def test_a_position_advances_by_batches_and_the_last_one_may_be_partial():
    position, seen = Position(0, 0), []
    for _ in range(6):
        position = position.advanced(4, num_examples=10)
        seen.append((position.epoch, position.trained))
    assert seen == [(0, 4), (0, 8), (1, 0), (1, 4), (1, 8), (2, 0)]
    assert Position(2, 6).advanced(4, num_examples=10) == Position(3, 0)
    assert Position(0, 0).advanced(50, num_examples=10) == Position(1, 0)


def test_a_position_is_one_number():
    for number in range(35):
        position = position_of(number, num_examples=10)
        assert position.as_number(10) == number
        assert 0 <= position.trained < 10
    assert position_of(23, 10) == Position(2, 3)


@pytest.mark.parametrize(("num_examples", "batch_size", "steps"), [(10, 4, 3), (8, 4, 2), (1, 4, 1), (9, 9, 1)])
def test_the_steps_of_an_epoch(num_examples, batch_size, steps):
    assert steps_per_epoch(num_examples, batch_size) == steps
    position = Position(0, 0)
    for _ in range(steps):
        assert position.epoch == 0
        position = position.advanced(batch_size, num_examples)
    assert position == Position(1, 0)
