"""What a person should know of a dataset, counted partition by partition and added up: the numbers of the data card."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

NUM_TIME_BINS = 60
NUM_LENGTH_BINS = 40
SAMPLED_USERS = 1_000  # of a partition, for what costs a comparison of every event with every target
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
    sampled_targets, repeated_targets: test targets of sampled users, and those among them that the user had before.
    users_without_training: users with test targets but without anything to train on.
    positives: of each label, by split.
    """

    lengths: Ints
    longest: int
    times: Ints
    earliest: Ints
    latest: Ints
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
            "sampled_test_targets": self.sampled_targets,
            "repeated_test_targets": self.repeated_targets,
            "test_users_without_training": self.users_without_training,
        }


def profile_of(
    items: Ints, times: Ints, offsets: Ints, split_of_event: npt.NDArray[np.int8], lengths: Ints, bins: TimeBins
) -> Profile:
    """Of one partition. items, times: of all events (ranking: impressions) by user; lengths: (num_users,) of histories."""
    counts = np.zeros((3, NUM_TIME_BINS), np.int64)
    np.add.at(counts.reshape(-1), split_of_event.astype(np.int64) * NUM_TIME_BINS + bins.of(times), 1)
    earliest, latest = np.full(3, _LATEST), np.full(3, _EARLIEST)
    for split in range(3):
        inside = times[split_of_event == split]
        if inside.size:
            earliest[split], latest[split] = inside.min(), inside.max()
    place = np.frexp(lengths.astype(np.float64))[1]  # 2^k .. 2^(k + 1) - 1 gives k + 1, and 0 gives 0
    num_users = len(offsets) - 1
    users = np.repeat(np.arange(num_users), np.diff(offsets))
    trained = np.bincount(users[split_of_event == 0], minlength=num_users) > 0
    tested = np.bincount(users[split_of_event == 2], minlength=num_users) > 0
    sampled, repeated = _repeats(items, users, split_of_event, offsets)
    return Profile(
        np.bincount(np.minimum(place, NUM_LENGTH_BINS - 1), minlength=NUM_LENGTH_BINS).astype(np.int64),
        int(lengths.max(initial=0)),
        counts,
        earliest,
        latest,
        sampled,
        repeated,
        int((tested & ~trained).sum()),
    )


def _repeats(items: Ints, users: Ints, split_of_event: npt.NDArray[np.int8], offsets: Ints) -> tuple[int, int]:
    end = int(offsets[min(SAMPLED_USERS, len(offsets) - 1)])
    key = users[:end] * (int(items.max(initial=0)) + 1) + items[:end]
    tests = split_of_event[:end] == 2
    targets, events = np.sort(key[tests]), key[~tests]
    place = np.minimum(np.searchsorted(targets, events), max(0, targets.size - 1))
    hit = np.unique(place[targets[place] == events]) if targets.size else place[:0]
    return int(targets.size), int(hit.size)


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
            total.sampled_targets + piece.sampled_targets,
            total.repeated_targets + piece.repeated_targets,
            total.users_without_training + piece.users_without_training,
            {n: total.positives.get(n, zero) + piece.positives.get(n, zero) for n in sorted(names)},
        )
    return total
