"""Bounds of the training, validation and test parts of histories. Pure numpy."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt

from trainer.config.split import GlobalTimeConfig, LastNConfig, LeaveOneOutConfig, SplitConfig, UserHoldoutConfig
from trainer.data.dataset.hashing import Hashes, mix
from trainer.errors import UserError

Ints = npt.NDArray[np.int64]
Split = Literal["validation", "test"]  # the parts of a history on which models are evaluated
_VALIDATED = np.uint64(0x76616C6964617465)
_HELD_OUT = np.uint64(0x68656C646F757421)
CLOCK_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_FROM_1990, _TO_2100 = 631_152_000, 4_102_444_800  # seconds since 1970
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class LeaveOneOut:
    """The last events are the test targets and those before them the validation targets."""

    # Fewest events of a user with these targets; users with fewer only train.
    min_events: int
    # Share of these users with a validation target; the event before the last of other users trains.
    validation_share: float = 1.0
    # Number of test targets, and of validation targets.
    num_targets: int = 1


@dataclass(frozen=True)
class TimeBounds:
    """Times that separate the splits, in the unit of the dataset."""

    # Events before it train.
    validation_time: int
    # Events before it (and not before validation_time) validate, the others test.
    test_time: int


@dataclass(frozen=True)
class NewEvents:
    """Cuts of a dataset that is derived from another one: the events of the other are history, the new ones test targets."""

    # Whether the new events are targets. If not, they are history as well.
    targets: bool = True


@dataclass(frozen=True)
class UserHoldout:
    """Users of whom nothing is trained.

    All events of a validation user are in the validation part. Those of a test user are in the validation part, except for
    the targets. So train_end is 0, and readers take the last events of the part as its targets (`held_out.bounds_of`).
    """

    # Share of the users that are tested.
    test_share: float
    # Share of the users that are validated.
    validation_share: float
    # Number of targets of each.
    num_targets: int

    def trains(self, users: Hashes) -> npt.NDArray[np.bool_]:
        """Return a mask of the users that are trained on."""
        return _chosen_from(users, self.test_share + self.validation_share, 1.0)

    def tests(self, users: Hashes) -> npt.NDArray[np.bool_]:
        """Return a mask of the users that are tested."""
        return _chosen_from(users, 0.0, self.test_share)


Cuts = LeaveOneOut | TimeBounds | UserHoldout


def resolve_cuts(split: SplitConfig, time_kind: Literal["integer", "timestamp"]) -> Cuts:
    """Return the bounds of the split as numbers. Raises UserError if its times cannot be read or do not fit the time column."""
    match split:
        case LeaveOneOutConfig():
            return LeaveOneOut(split.min_events, split.validation_share)
        case LastNConfig():
            return LeaveOneOut(split.min_events or 2 * split.num_targets + 1, num_targets=split.num_targets)
        case UserHoldoutConfig():
            return UserHoldout(split.test_share, split.validation_share, split.num_targets)
        case GlobalTimeConfig():
            bounds = TimeBounds(
                resolve_time(split.validation_time, "split.validation_time", time_kind),
                resolve_time(split.test_time, "split.test_time", time_kind),
            )
            if bounds.validation_time >= bounds.test_time:
                raise UserError(
                    f"split.validation_time = {split.validation_time!r} is not before test_time = {split.test_time!r}"
                )
            return bounds


def cut_histories(times: Ints, offsets: Ints, cuts: Cuts, users: Hashes) -> tuple[Ints, Ints]:
    """Return `train_end` and `validation_end` of every history, relative to its start.

    Args:
        times: (n,) times, ascending within each history.
        offsets: bounds of the histories.
        cuts: bounds of the splits.
        users: hashes of the histories' users.
    """
    lengths = np.diff(offsets)
    match cuts:
        case LeaveOneOut():
            held_out = (lengths >= cuts.min_events).astype(np.int64) * cuts.num_targets
            validated = held_out * _chosen(users, cuts.validation_share)
            return lengths - held_out - validated, lengths - held_out
        case UserHoldout():
            train_end = np.where(cuts.trains(users), lengths, 0)
            return train_end, np.where(cuts.tests(users), np.maximum(0, lengths - cuts.num_targets), lengths)
        case TimeBounds():
            # Sums by differences, because some histories are empty (np.add.reduceat returns an element for these).
            before = [np.append(0, np.cumsum(times < bound)) for bound in (cuts.validation_time, cuts.test_time)]
            train_end, validation_end = (np.diff(b[offsets]) for b in before)
            return train_end, validation_end


def cut_new_events(lengths: Ints, num_new: Ints, known_train_end: Ints, cuts: NewEvents) -> tuple[Ints, Ints]:
    """Return `train_end` and `validation_end` of every history of a derived dataset.

    Args:
        lengths: number of events of each history.
        num_new: number of new events of each, which are the last ones.
        known_train_end: `train_end` of the histories that the other dataset has, which come first.
        cuts: whether the new events are targets.
    """
    train_end = np.zeros(lengths.size, np.int64)
    train_end[: known_train_end.size] = known_train_end
    return train_end, lengths - num_new if cuts.targets else lengths


def _chosen(users: Hashes, share: float) -> npt.NDArray[np.bool_]:
    """Return a mask of a fixed share of the users. Hashes are mixed again, because the hash itself determines the partition."""
    if share == 1.0:
        return np.ones(users.size, np.bool_)
    return mix(users ^ _VALIDATED) < np.uint64(share * 2.0**64)


def _chosen_from(users: Hashes, low: float, high: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the users with a hash, mixed again, from `low` to below `high` of its range."""
    place = mix(users ^ _HELD_OUT).astype(np.float64) / 2.0**64
    return (place >= low) & ((place < high) | (high == 1.0))


def time_as_text(value: int, time_kind: str) -> str:
    """Return a time of the dataset for people: an integer unchanged, microseconds since 1970 as a moment in UTC."""
    if time_kind == "integer":
        return str(value)
    return str(np.datetime64(value, "us").astype("datetime64[s]")).replace("T", " ")


def unit_of_clock(first: int, last: int) -> str | None:
    """Return the unit in which integers from `first` to `last` are times between 1990 and 2100; None if there is none."""
    for unit, per_second in CLOCK_UNITS.items():
        if _FROM_1990 * per_second <= first <= last < _TO_2100 * per_second:
            return unit
    return None


def resolve_time(value: int | str, setting: str, time_kind: str) -> int:
    """Return a time of the config in the unit of the dataset. Raises UserError if its form does not fit the time column."""
    if isinstance(value, int) and time_kind == "integer":
        return value
    if isinstance(value, int):
        raise UserError(
            f"{setting} = {value} is an integer, but the time column holds timestamps or dates; "
            f'write it as an ISO date or date and time in UTC, for example {setting} = "2024-05-01"'
        )
    if time_kind == "integer":
        raise UserError(
            f"{setting} = {value!r} is a date, but the time column holds integers; "
            "write it as an integer in the unit of that column"
        )
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise UserError(
            f'{setting} = {value!r} is no ISO date or date and time, such as "2024-05-01T12:00:00"'
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - _EPOCH) // timedelta(microseconds=1)
