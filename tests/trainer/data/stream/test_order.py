"""The order of training: a permutation per epoch, the same for any number of ranks, to be entered anywhere."""

from zlib import crc32

import numpy as np
import pytest

from trainer.data.stream.order import EpochOrder, Places, Position, position_of, steps_per_epoch

# Unequal row groups; fewer groups than streams, exactly as many, and more than the 64 streams at most.
SHAPES = {
    "one group": (17,),
    "one row": (1,),
    "unequal": (1, 9, 3, 3, 14, 2, 7),
    "equal": (5,) * 8,
    "many groups": tuple(np.random.default_rng(0).integers(1, 5, size=150).tolist()),
}
LARGE_GROUPS = tuple((np.arange(100) * 37 % 90 + 10).tolist())  # of 10 to 99 examples, 100 of them
shapes = pytest.mark.parametrize("group_rows", SHAPES.values(), ids=SHAPES)


def triples(places: Places) -> list[tuple[int, int, int]]:
    return list(zip(places.position.tolist(), places.group.tolist(), places.place.tolist(), strict=True))


def every_row(group_rows: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(group, row) for group, count in enumerate(group_rows) for row in range(count)]


def over_ranks(order: EpochOrder, start: int, stop: int, world_size: int) -> list[tuple[int, int, int]]:
    """Return one batch from start to stop."""
    bounds = np.asarray([start, stop])
    return sorted(t for rank in range(world_size) for t in triples(order.share(bounds, rank, world_size)))


@shapes
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_is_a_permutation_of_all_rows(group_rows, epoch):
    order = EpochOrder(group_rows, seed=3, epoch=epoch)
    rows = order.places(0, order.num_examples)
    assert rows.position.tolist() == list(range(sum(group_rows)))
    assert sorted(zip(rows.group.tolist(), rows.place.tolist(), strict=True)) == every_row(group_rows)


@shapes
@pytest.mark.parametrize("world_size", [2, 3, 4, 8, 100])
def test_every_batch_is_the_same_for_any_number_of_ranks(group_rows, world_size):
    """With 100 ranks there are more ranks than streams."""
    order = EpochOrder(group_rows, seed=3, epoch=1)
    whole = triples(order.places(0, order.num_examples))
    for start in range(0, order.num_examples, 8):
        stop = min(start + 8, order.num_examples)
        assert over_ranks(order, start, stop, world_size) == whole[start:stop]


@shapes
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_position_can_be_entered(group_rows, world_size):
    order = EpochOrder(group_rows, seed=5, epoch=2)
    whole = triples(order.places(0, order.num_examples))
    for start in range(order.num_examples):
        fresh = EpochOrder(group_rows, seed=5, epoch=2)
        assert over_ranks(fresh, start, order.num_examples, world_size) == whole[start:]


def test_a_stretch_beyond_the_end_is_cut_there():
    order = EpochOrder((3, 4), seed=1, epoch=0)
    assert triples(order.places(5, 100)) == triples(order.places(5, 7))
    assert triples(order.places(7, 9)) == []


def test_the_order_changes_with_epoch_and_seed_and_nothing_else():
    def sequence(seed: int, epoch: int) -> list[tuple[int, int, int]]:
        return triples(EpochOrder(SHAPES["unequal"], seed, epoch).places(0, 39))

    assert sequence(1, 0) == sequence(1, 0)
    assert len({tuple(sequence(seed, epoch)) for seed in (1, 2, 3) for epoch in (0, 1, 2)}) == 9


def test_row_groups_too_are_permuted_by_seed_and_epoch():
    def groups(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(EpochOrder(SHAPES["many groups"], seed, epoch).places(0, 64).group.tolist())

    assert len({groups(seed, epoch) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_rows_are_permuted_within_a_group_that_stays_in_its_place():
    """One group: only the permutation of rows is left to change."""
    first, second = (EpochOrder((40,), 1, epoch).places(0, 40).place.tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != list(range(40))


def test_groups_are_reshuffled_each_epoch():
    first, second = (EpochOrder((1,) * 30, 1, epoch, 1).places(0, 30).group.tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


def test_streams_take_turns_and_those_that_ended_are_passed_over():
    order = EpochOrder((1, 3, 2), seed=1, epoch=0)
    _, stream, index = order.streams(0, 6)
    rows = order.places(0, 6)
    assert index.tolist() == [0, 0, 0, 1, 1, 2]
    assert sorted(stream[:3].tolist()) == [0, 1, 2]
    assert rows.group[index == 1].tolist() == [group for group in rows.group[:3].tolist() if group != 0]
    assert rows.group[5] == 1


def test_rows_of_one_group_are_spread_over_the_epoch():
    """What the streams are for: neighbours in a file do not meet in one batch."""
    order = EpochOrder((20,) * 32, seed=1, epoch=0)
    for start in range(0, 640, 32):
        assert len(set(order.places(start, start + 32).group.tolist())) == 32


@pytest.mark.parametrize(
    ("group_rows", "seed", "epoch", "digest"),
    [
        (SHAPES["unequal"], 1, 0, 780184736),
        (SHAPES["unequal"], 3, 2, 2456922785),
        (SHAPES["many groups"], 1, 0, 3735660633),
        (SHAPES["many groups"], 3, 2, 2188823284),
        (LARGE_GROUPS, 1, 0, 782665268),
        (LARGE_GROUPS, 3, 2, 2320120462),
    ],
)
def test_the_global_order_is_that_of_runs_of_earlier_versions(group_rows, seed, epoch, digest):
    """A run continues where it stopped only while its order is the same: recorded from version 0.1."""
    order = EpochOrder(group_rows, seed, epoch)
    places = order.places(0, order.num_examples)
    assert crc32(np.stack((places.group, places.place)).astype("<i8").tobytes()) == digest


# Shares


def shares_of(order: EpochOrder, bounds: np.ndarray, world_size: int) -> list[Places]:
    return [order.share(bounds, rank, world_size) for rank in range(world_size)]


@pytest.mark.parametrize(
    ("group_rows", "world_size"),
    [
        *((SHAPES["many groups"], world_size) for world_size in (2, 3, 65)),
        *((LARGE_GROUPS, world_size) for world_size in (2, 48, 64, 65, 128, 1000, 1024)),
        ((50,) * 64, 65),
    ],
)
def test_every_example_is_served_once_and_shares_of_a_batch_differ_by_at_most_one(group_rows, world_size):
    """Also of batches with fewer examples than ranks, and where streams have ended."""
    order = EpochOrder(group_rows, seed=3, epoch=1)
    for batch_size, start in ((world_size // 2, order.num_examples * 3 // 4), (2 * world_size + 5, 0)):
        stop = min(order.num_examples, start + 2 * world_size + 5)
        bounds = np.append(np.arange(start, stop, batch_size), stop)
        shares = shares_of(order, bounds, world_size)
        positions = np.concatenate([share.position for share in shares])
        assert np.sort(positions).tolist() == list(range(start, stop))
        counts = np.stack([np.histogram(share.position, bounds)[0] for share in shares])
        assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1
        expected = order.places(start, stop)
        for share in shares[:: max(1, world_size // 7)]:
            assert (np.diff(share.position) > 0).all()
            at = share.position - start
            np.testing.assert_array_equal(share.group, expected.group[at])
            np.testing.assert_array_equal(share.place, expected.place[at])


@pytest.mark.parametrize(("before", "after"), [(2, 128), (65, 3), (64, 1000)])
def test_a_resumed_run_has_the_same_batches_at_any_world_size(before, after):
    """What is trained after a change of the number of ranks is what would have been trained without it."""
    batch_size, seen = 1300, []
    order = EpochOrder(LARGE_GROUPS, seed=5, epoch=0)
    middle = 2 * batch_size
    for start, stop, world_size in ((0, middle, before), (middle, order.num_examples, after)):
        bounds = np.append(np.arange(start, stop, batch_size), stop)
        seen += sorted(t for share in shares_of(order, bounds, world_size) for t in triples(share))
    assert seen == triples(order.places(0, order.num_examples))


@pytest.mark.parametrize("world_size", [2, 4, 8, 16, 32, 64])
def test_a_rank_reads_its_own_streams_only_while_whole_streams_are_even_shares(world_size):
    order = EpochOrder((40,) * 64, seed=3, epoch=1)
    _, stream, _ = order.streams(0, order.num_examples)
    bounds = np.arange(0, order.num_examples + 1, 160)
    for rank, share in enumerate(shares_of(order, bounds, world_size)):
        assert set((stream[share.position] % world_size).tolist()) == {rank}


@pytest.mark.parametrize("world_size", [3, 48, 63, 65, 128])
def test_otherwise_a_rank_reads_little_more_than_its_share_of_the_row_groups(world_size):
    """Streams of a batch are cut into as many pieces as there are ranks, so each cut makes two ranks read one stream."""
    order = EpochOrder((400,) * 64, seed=3, epoch=1)
    bounds = np.arange(0, order.num_examples + 1, 64 * 25)
    read = [np.unique(share.group).size for share in shares_of(order, bounds, world_size)]
    assert sum(read) <= 64 + 2 * world_size
    assert max(read) <= -(-64 // world_size) + 2


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


# 1,024 ranks

MANY_GROUPS = tuple(40 + group % 37 for group in range(10_000))


@pytest.mark.parametrize("streams", [64, 1024])
def test_1024_ranks_have_even_shares_of_10000_row_groups(streams):
    """Over all batches, the last partial one included. One call per batch gives the sizes of all shares."""
    order = EpochOrder(MANY_GROUPS, seed=1, epoch=0, max_streams=streams)
    world_size, batch_size = 1024, 8 * 1024
    bounds = np.append(np.arange(0, order.num_examples, batch_size), order.num_examples)
    ranks = (0, 1, 63, 64, 65, 511, 1023)
    counts = np.array([order.share(bounds, rank, world_size).position.size for rank in ranks])
    assert counts.max() / (order.num_examples / world_size) <= 1.05
    assert counts.min() / (order.num_examples / world_size) >= 0.95


def test_as_many_streams_as_ranks_read_each_row_group_once():
    """Until the first stream ends. With 64 streams 16 ranks read each row group."""
    world_size = 1024
    bounds = np.arange(0, 40 * 1024 + 1, 8 * 1024)
    read = {}
    for streams in (64, 1024):
        order = EpochOrder((40,) * 10_000, seed=1, epoch=0, max_streams=streams)
        shares = [order.share(bounds, rank, world_size) for rank in range(0, world_size, 16)]
        read[streams] = sum(np.unique(share.group).size for share in shares) / len(shares)
    assert read[1024] == 1.0
    assert read[64] > 4.0


def test_streams_decide_the_order_and_64_is_the_default():
    order = EpochOrder(MANY_GROUPS[:300], seed=1, epoch=0)
    same, other = (EpochOrder(MANY_GROUPS[:300], 1, 0, streams) for streams in (64, 128))
    assert triples(order.places(0, 500)) == triples(same.places(0, 500))
    assert triples(order.places(0, 500)) != triples(other.places(0, 500))
    assert sorted(triples(other.places(0, other.num_examples)))[-1][0] == other.num_examples - 1


def test_1024_streams_have_the_order_of_a_plain_loop():
    """Groups of one example: the order is that of the groups as they were dealt, in turns."""
    order = EpochOrder((1,) * 2048, seed=1, epoch=0, max_streams=1024)
    permuted = np.random.default_rng([1, 0, 0]).permutation(2048)
    assert order.places(0, 2048).group.tolist() == permuted.tolist()
    rank = order.share(np.array([0, 2048]), 300, 1024)
    assert rank.group.tolist() == [permuted[300], permuted[1324]]
