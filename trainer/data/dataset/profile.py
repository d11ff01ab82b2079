"""What a person should know of a dataset, counted partition by partition and added up: the numbers of the data card."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

NUM_TIME_BINS = 60
NUM_LENGTH_BINS = 40
SAMPLED_USERS = 1_000  # of a partition at most, for what costs a comparison of every event with every target
SPLITS = ("train", "validation", "test")
_LATEST, _EARLIEST = np.iinfo(np.int64).max, np.iinfo(np.int64).min


@dataclass(frozen=True)
class TimeBins:
    """Equal stretches between the first and the last time of the logs."""

    first: int
    last: int

    def of(self, times: Ints) -> Ints:
        """Which bin each time is in. In floating point, because differences may exceed an int64."""
        span = max(1.0, float(self.last) - float(self.first))
        place = (times.astype(np.float64) - float(self.first)) / span * NUM_TIME_BINS
        return np.clip(place, 0, NUM_TIME_BINS - 1).astype(np.int64)


@dataclass(frozen=True)
class Profile:
    """Sums over partitions.

    lengths: (NUM_LENGTH_BINS,) users whose history has 2^k to 2^(k + 1) - 1 events at place k + 1, none at 0; longest: events
    of the longest; times: (3, NUM_TIME_BINS) events (ranking: impressions) by split and time; earliest, latest: (3,) by split.
    users: (3,) with events in each split. sampled_targets, repeated_targets: test targets of sampled users, and those among
    them that the user had before the test. users_without_training: users with test targets but without anything to train
    on. positives: of each label, by split.
    """

    lengths: Ints
    longest: int
    times: Ints
    earliest: Ints
    latest: Ints
    users: Ints
    sampled_targets: int = 0
    repeated_targets: int = 0
    users_without_training: int = 0
    positives: dict[str, Ints] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> "Profile":
        return cls(
            np.zeros(NUM_LENGTH_BINS, np.int64),
            0,
            np.zeros((3, NUM_TIME_BINS), np.int64),
            np.full(3, _LATEST),
            np.full(3, _EARLIEST),
            np.zeros(3, np.int64),
        )

    def as_values(self) -> dict[str, Any]:
        """Plain values for the manifest; times are None for a split without any."""
        held = self.times.sum(axis=1) > 0
        return {
            "history_lengths": self.lengths.tolist(),
            "longest_history": self.longest,
            "events_over_time": dict(zip(SPLITS, self.times.tolist(), strict=True)),
            "time_range": {
                name: [int(self.earliest[k]), int(self.latest[k])] if held[k] else None for k, name in enumerate(SPLITS)
            },
            "users": dict(zip(SPLITS, self.users.tolist(), strict=True)),
            "sampled_test_targets": self.sampled_targets,
            "repeated_test_targets": self.repeated_targets,
            "test_users_without_training": self.users_without_training,
        }


def profile_of(
    items: Ints, times: Ints, offsets: Ints, split_of_event: npt.NDArray[np.int8], lengths: Ints, bins: TimeBins
) -> Profile:
    """Of one partition. items, times: of all events (ranking: impressions) by user; lengths: (num_users,) of histories."""
    places = split_of_event.astype(np.int64) * NUM_TIME_BINS + bins.of(times)
    counts = np.bincount(places, minlength=3 * NUM_TIME_BINS)
    earliest, latest = np.full(3, _LATEST), np.full(3, _EARLIEST)
    num_users = len(offsets) - 1
    users = np.repeat(np.arange(num_users), np.diff(offsets))
    held = np.zeros((3, num_users), np.bool_)
    for split in range(3):
        inside = split_of_event == split
        held[split, users[inside]] = True
        moments = times[inside]
        if moments.size:
            earliest[split], latest[split] = moments.min(), moments.max()
    place = np.frexp(lengths.astype(np.float64))[1]  # 2^k .. 2^(k + 1) - 1 gives k + 1, and 0 gives 0
    sampled, repeated = _repeats(items, split_of_event, offsets)
    return Profile(
        np.bincount(np.minimum(place, NUM_LENGTH_BINS - 1), minlength=NUM_LENGTH_BINS).astype(np.int64),
        int(lengths.max(initial=0)),
        counts.reshape(3, NUM_TIME_BINS),
        earliest,
        latest,
        held.sum(axis=1),
        sampled,
        repeated,
        int((held[2] & ~held[0]).sum()),
    )


def _repeats(items: Ints, split_of_event: npt.NDArray[np.int8], offsets: Ints) -> tuple[int, int]:
    """Test targets of sampled users, and how many of them are of an item that the user had before the test."""
    # Evenly spaced users: the first ones may be the oldest accounts.
    step = max(1, -(-(len(offsets) - 1) // SAMPLED_USERS))
    starts, lengths = offsets[:-1][::step], np.diff(offsets)[::step]
    index = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    users = np.repeat(np.arange(lengths.size), lengths)
    key = users * (int(items.max(initial=0)) + 1) + items[index]
    tests = split_of_event[index] == 2
    targets, counts = np.unique(key[tests], return_counts=True)
    place = np.searchsorted(targets, key[~tests])
    found = np.zeros(targets.size + 1, np.bool_)
    found[place[np.append(targets, -1)[place] == key[~tests]]] = True
    return int(counts.sum()), int(counts[found[:-1]].sum())


def merged(pieces: Iterable[Profile]) -> Profile:
    total = Profile.empty()
    for piece in pieces:
        names = total.positives.keys() | piece.positives.keys()
        zero = np.zeros(3, np.int64)
        total = Profile(
            total.lengths + piece.lengths,
            max(total.longest, piece.longest),
            total.times + piece.times,
            np.minimum(total.earliest, piece.earliest),
            np.maximum(total.latest, piece.latest),
            total.users + piece.users,
            total.sampled_targets + piece.sampled_targets,
            total.repeated_targets + piece.repeated_targets,
            total.users_without_training + piece.users_without_training,
            {n: total.positives.get(n, zero) + piece.positives.get(n, zero) for n in sorted(names)},
        )
    return total


def overlap_of_items(
    num_events: Ints, num_train_events: Ints, num_test_events: Ints, ids: npt.NDArray[np.int32]
) -> dict[str, Any]:
    """Which items the splits share, as plain values for the manifest. (catalogue,) each; id 0: unknown to the model."""
    num_validation_events = num_events - num_train_events - num_test_events
    tested, trained = num_test_events > 0, num_train_events > 0
    return {
        "items": {
            "train": int(trained.sum()),
            "validation": int((num_validation_events > 0).sum()),
            "test": int(tested.sum()),
        },
        "test_items_with_training": int((tested & trained).sum()),
        "test_targets_without_training": int(num_test_events[~trained].sum()),
        "unknown_targets": {
            "validation": int(num_validation_events[ids == 0].sum()),
            "test": int(num_test_events[ids == 0].sum()),
        },
    }
