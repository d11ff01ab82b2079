"""The sums behind the data card: equal to counting by hand, and the same whether partitions are added up or counted at once."""

import random
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from trainer.data.dataset import profile
from trainer.data.dataset.profile import NUM_TIME_BINS, SPLITS, Profile, TimeBins, merged, overlap_of_items, profile_of
from trainer.data.dataset.tied_order import TiedOrder, tied_order_of

BINS = TimeBins(0, 999)
Event = tuple[int, int, int]  # item, time, split


def random_histories(seed: int, num_users: int) -> list[list[Event]]:
    """Return training, validation and test events of each user, in this order; there may be none of a kind."""
    choose = random.Random(seed)
    histories = []
    for _ in range(num_users):
        counts = [choose.choice([0, 1, 2, 7]), choose.choice([0, 1]), choose.choice([0, 0, 1, 3])]
        splits = [split for split, count in enumerate(counts) for _ in range(count)]
        times = sorted(choose.randint(0, 999) for _ in splits)
        histories.append([(choose.randint(1, 6), time, split) for time, split in zip(times, splits, strict=True)])
    return histories


def profiled(histories: list[list[Event]]) -> Profile:
    items, times, splits = (
        np.asarray([event[k] for history in histories for event in history], np.int64) for k in range(3)
    )
    lengths = np.asarray([len(history) for history in histories], np.int64)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    return profile_of(items, times, offsets, splits.astype(np.int8), lengths, BINS)


def by_hand(histories: list[list[Event]]) -> dict[str, Any]:
    """Return the values that `Profile.as_values` promises, counted event by event."""
    times: dict[str, list[int]] = {split: [0] * NUM_TIME_BINS for split in SPLITS}
    ranges: dict[str, Any] = dict.fromkeys(SPLITS)
    lengths = [0] * profile.NUM_LENGTH_BINS
    targets = repeats = strangers = 0
    users = dict.fromkeys(SPLITS, 0)
    for history in histories:
        lengths[len(history).bit_length()] += 1
        for number, split in enumerate(SPLITS):
            users[split] += any(event[2] == number for event in history)
        for item, time, number in history:
            split = SPLITS[number]
            times[split][min(NUM_TIME_BINS - 1, time * NUM_TIME_BINS // 999)] += 1
            first, last = ranges[split] or (time, time)
            ranges[split] = [min(first, time), max(last, time)]
            if number == 2:
                targets += 1
                repeats += any(other == item and of != 2 for other, _, of in history)
        present = {event[2] for event in history}
        strangers += 2 in present and 0 not in present
    return {
        "history_lengths": lengths,
        "longest_history": max(map(len, histories), default=0),
        "events_over_time": times,
        "time_range": ranges,
        "users": users,
        "sampled_test_targets": targets,
        "repeated_test_targets": repeats,
        "test_users_without_training": strangers,
        "tied_order": asdict(TiedOrder()),
    }


@pytest.mark.parametrize("seed", range(8))
def test_a_profile_equals_counting_by_hand(seed: int) -> None:
    histories = random_histories(seed, num_users=random.Random(seed).choice([0, 1, 40, 200]))
    assert profiled(histories).as_values() == by_hand(histories)


@pytest.mark.parametrize("seed", range(4))
def test_merged_pieces_equal_the_whole(seed: int) -> None:
    histories = random_histories(seed, num_users=90)
    whole = profiled(histories)
    pieces = merged([profiled(histories[:13]), profiled([]), profiled(histories[13:60]), profiled(histories[60:])])
    for field in fields(Profile):
        one, other = getattr(whole, field.name), getattr(pieces, field.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, field.name


def test_positives_of_labels_are_added_up() -> None:
    one, other = (
        Profile(**vars(Profile.empty()) | {"positives": {name: np.array(counts)}})
        for name, counts in (("click", [1, 2, 3]), ("like", [4, 5, 6]))
    )
    total = merged([one, other, one]).positives
    assert {name: counts.tolist() for name, counts in total.items()} == {"click": [2, 4, 6], "like": [4, 5, 6]}


def test_repeats_are_looked_for_among_evenly_spaced_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "SAMPLED_USERS", 10)
    # The first half repeats and the second does not: a sample of the first users would see repeats only.
    histories = [[(1, 1, 0), (1 if user < 50 else 2, 2, 2)] for user in range(100)]
    actual = profiled(histories)
    assert (actual.sampled_targets, actual.repeated_targets) == (10, 5)


def test_a_repeated_target_that_occurs_twice_counts_twice() -> None:
    actual = profiled([[(5, 1, 0), (5, 2, 2), (5, 3, 2), (6, 4, 2), (6, 5, 2)]])
    assert (actual.sampled_targets, actual.repeated_targets) == (4, 2)  # the second 6 is no repeat of what came before


def test_times_that_are_far_apart_have_bins() -> None:
    bins = TimeBins(-(2**62), 2**62)
    assert bins.of(np.array([-(2**62), -1, 0, 2**62])).tolist() == [0, 30, 30, NUM_TIME_BINS - 1]
    assert TimeBins(7, 7).of(np.array([7])).tolist() == [0]


def test_overlap_of_items_equals_counting_by_hand() -> None:
    #                     known  known  too rare  held out only  in the catalogue only
    num_events = np.array([5, 3, 2, 4, 0])
    num_train = np.array([3, 2, 1, 0, 0])
    num_test = np.array([1, 0, 1, 3, 0])
    assert overlap_of_items(num_events, num_train, num_test, np.array([1, 2, 0, 0, 0], np.int32)) == {
        "items": {"train": 3, "validation": 3, "test": 3},
        "test_items_with_training": 2,
        "test_targets_without_training": 3,
        "unknown_targets": {"validation": 1, "test": 4},
    }


@pytest.mark.parametrize("vocabulary", [pa.array([30, 9, 100]), pa.array(["b", "a", "c"])], ids=["numbers", "texts"])
def test_the_order_of_ties_is_that_of_the_values_in_the_logs(vocabulary: pa.Array) -> None:
    """Numbers 1, 2, 3 stand for the second, the first and the third value in order: 30 comes after 9, as b after a."""
    users = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    times = np.array([5, 5, 5, 6, 6, 6, 6, 1, 2, 1, 1])
    numbers = np.array([2, 1, 3, 1, 3, 1, 3, 1, 2, 1, 1])
    ties = tied_order_of(users, times, numbers, vocabulary)
    assert ties == TiedOrder(ascending=3, descending=1, users=2, squares=4)
    halves = [users < 1, users >= 1]
    pieces = [tied_order_of(users[half], times[half], numbers[half], vocabulary) for half in halves]
    assert pieces[0] + pieces[1] == ties
    assert ties.errors_from_half == 1.0
    assert tied_order_of(users, np.arange(11), numbers, vocabulary) == TiedOrder()


def test_merged_profiles_add_up_the_order_of_ties() -> None:
    one = Profile(**vars(Profile.empty()) | {"tied_order": TiedOrder(1, 2, 3, 4)})
    assert merged([one, one]).tied_order == TiedOrder(2, 4, 6, 8)
