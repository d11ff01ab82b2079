"""Statistics for the data card, computed per partition and summed."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset.tied_order import TiedOrder

Ints = npt.NDArray[np.int64]

NUM_TIME_BINS = 60
NUM_LENGTH_BINS = 40
SAMPLED_USERS = 1_000  # most users of a partition for statistics that compare every event with every target
SPLITS = ("train", "validation", "test")
_BLOCK = 1 << 20  # items with counts in memory at a time
_LATEST, _EARLIEST = np.iinfo(np.int64).max, np.iinfo(np.int64).min


@dataclass(frozen=True)
class TimeBins:
    """Equal stretches between the first and the last time of the logs."""

    first: int
    last: int

    def of(self, times: Ints) -> Ints:
        """Return the bin of each time. Computed in floating point, because differences may exceed an int64."""
        span = max(1.0, float(self.last) - float(self.first))
        place = (times.astype(np.float64) - float(self.first)) / span * NUM_TIME_BINS
        return np.clip(place, 0, NUM_TIME_BINS - 1).astype(np.int64)


@dataclass(frozen=True)
class Profile:
    """Sums over partitions."""

    # (NUM_LENGTH_BINS,) users by history length: 2^k to 2^(k + 1) - 1 events at k + 1, no events at 0.
    lengths: Ints
    # Events of the longest history.
    longest: int
    # (3, NUM_TIME_BINS) events (ranking: impressions) by split and time.
    times: Ints
    # (3,) earliest time by split.
    earliest: Ints
    # (3,) latest time by split.
    latest: Ints
    # (3,) users with events in each split.
    users: Ints
    # Test targets of sampled users.
    sampled_targets: int = 0
    # Those of them with an item that the user had before the test.
    repeated_targets: int = 0
    # Users with test targets, but without training events.
    users_without_training: int = 0
    # (3,) positives of each label, by split.
    positives: dict[str, Ints] = field(default_factory=dict)
    # Order of events with equal times; not counted for impressions.
    tied_order: TiedOrder = field(default_factory=TiedOrder)

    @classmethod
    def empty(cls) -> "Profile":
        """Return the profile of no events."""
        return cls(
            np.zeros(NUM_LENGTH_BINS, np.int64),
            0,
            np.zeros((3, NUM_TIME_BINS), np.int64),
            np.full(3, _LATEST),
            np.full(3, _EARLIEST),
            np.zeros(3, np.int64),
        )

    def as_values(self) -> dict[str, Any]:
        """Return plain values for the manifest. The times of a split without events are None."""
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
            "tied_order": asdict(self.tied_order),
        }


def profile_of(
    items: Ints, times: Ints, offsets: Ints, split_of_event: npt.NDArray[np.int8], lengths: Ints, bins: TimeBins
) -> Profile:
    """Compute the profile of one partition.

    Args:
        items: items of all events (ranking: impressions), sorted by user.
        times: times of these events.
        offsets: (num_users + 1,) bounds of each user's events.
        split_of_event: split of each event.
        lengths: (num_users,) lengths of histories.
        bins: time bins.
    """
    places = split_of_event.astype(np.int64) * NUM_TIME_BINS + bins.of(times)
    counts = np.bincount(places, minlength=3 * NUM_TIME_BINS)
    earliest = np.full(3, _LATEST)
    latest = np.full(3, _EARLIEST)
    num_users = len(offsets) - 1
    users = np.repeat(np.arange(num_users), np.diff(offsets))
    held = np.zeros((3, num_users), np.bool_)
    for split in range(3):
        inside = split_of_event == split
        held[split, users[inside]] = True
        moments = times[inside]
        if moments.size:
            earliest[split] = moments.min()
            latest[split] = moments.max()
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
    """Count test targets of sampled users, and those with an item that the user had before the test."""
    # Evenly spaced users: the first ones may be the oldest accounts.
    step = max(1, -(-(len(offsets) - 1) // SAMPLED_USERS))
    starts = offsets[:-1][::step]
    lengths = np.diff(offsets)[::step]
    index = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    users = np.repeat(np.arange(lengths.size), lengths)
    key = users * (int(items.max(initial=0)) + 1) + items[index]
    tests = split_of_event[index] == 2
    targets, counts = np.unique(key[tests], return_counts=True)
    place = np.searchsorted(targets, key[~tests])
    repeated = np.zeros(targets.size + 1, np.bool_)
    repeated[place[np.append(targets, -1)[place] == key[~tests]]] = True
    return int(counts.sum()), int(counts[repeated[:-1]].sum())


def merged(pieces: Iterable[Profile]) -> Profile:
    """Add up the profiles of partitions."""
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
            total.tied_order + piece.tied_order,
        )
    return total


def overlap_of_items(
    num_events: Ints, num_train_events: Ints, num_test_events: Ints, ids: npt.NDArray[np.int32]
) -> dict[str, Any]:
    """Return which items the splits share, as plain values for the manifest.

    Args:
        num_events: (catalogue,) events of each item.
        num_train_events: (catalogue,) training events.
        num_test_events: (catalogue,) test events.
        ids: (catalogue,) id of each item; 0 is unknown to the model.
    """
    sums = np.zeros(7, np.int64)
    for first in range(0, ids.size, _BLOCK):
        block = slice(first, first + _BLOCK)
        num_test = num_test_events[block]
        num_validation = num_events[block] - num_train_events[block] - num_test
        trained, tested, unknown = num_train_events[block] > 0, num_test > 0, ids[block] == 0
        sums += [
            trained.sum(),
            (num_validation > 0).sum(),
            tested.sum(),
            (tested & trained).sum(),
            num_test[~trained].sum(),
            num_validation[unknown].sum(),
            num_test[unknown].sum(),
        ]
    train, validation, test, both, untrained, unknown_validation, unknown_test = sums.tolist()
    return {
        "items": {"train": train, "validation": validation, "test": test},
        "test_items_with_training": both,
        "test_targets_without_training": untrained,
        "unknown_targets": {"validation": unknown_validation, "test": unknown_test},
    }
