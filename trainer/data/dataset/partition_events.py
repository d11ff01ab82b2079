"""Events of one partition, old and new: sorted by user and time, without rejected ones.

Pure functions over Arrow tables and numpy arrays; trainer/data/dataset/partition.py makes rows from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.features import Ids
from trainer.data.dataset.grouping import Bools, Ints, Sorted, rank_values, sort_events
from trainer.data.dataset.hashing import whole
from trainer.data.dataset.profile import TimeBins
from trainer.data.dataset.splits import Cuts, NewEvents
from trainer.data.logs.config import FeatureSpec


@dataclass(frozen=True)
class GroupPlan:
    """Settings and vocabularies that turn partitions into rows."""

    # Bounds of the splits.
    cuts: Cuts | NewEvents
    # Ids of every table. The vocabulary of "item" is the catalogue.
    ids: Mapping[str, Ids]
    # All features.
    specs: tuple[FeatureSpec, ...]
    # Time bins of the profile.
    bins: TimeBins
    # Whether repeated events are rejected.
    drop_duplicates: bool = True
    # Number of most recent events kept per user; None keeps all.
    max_events_per_user: int | None = None
    # Names of labels; empty unless the dataset is for ranking.
    labels: tuple[str, ...] = ()
    # Label that turns impressions into events of the history.
    history_label: str | None = None
    # Whether numbers are fitted; an append keeps the existing fit.
    fit: bool = True

    def of(self, owner: str) -> tuple[FeatureSpec, ...]:
        """Return the features of an owner."""
        return tuple(spec for spec in self.specs if spec.owner == owner)


@dataclass(frozen=True)
class OldEvents:
    """Events of a partition that are already in the dataset."""

    # (n,) int64 numbers of the catalogue.
    items: Ints
    # (n,) int64.
    times: Ints
    # (num_rows + 1,) int64 bounds of each row's events.
    offsets: Ints
    # Labels of impressions by name, (n,) each.
    labels: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class OldRows:
    """Rows that an append continues."""

    # Users of the partition's rows, in their order.
    users: pa.Array
    # Events of their histories.
    history: OldEvents
    # Their impressions, in a dataset for ranking.
    impressions: OldEvents | None = None
    # (num_rows,) train_end of the rows, which only a derived dataset keeps.
    train_end: Ints | None = None


@dataclass(frozen=True)
class PartitionInput:
    """The rows of one partition from each source, in the order of the log (trainer/data/logs/contract.py)."""

    # Rows of the logs.
    events: pa.Table
    # Rows of the history source.
    history: pa.Table | None = None
    # Rows of the users' source.
    users: pa.Table | None = None
    # Rows that are already in the dataset.
    old: OldRows | None = None


@dataclass(frozen=True)
class Written:
    """Rows of the partition that are written now."""

    # Mask of these rows.
    rows: Bools
    # Whether they continue existing rows.
    appended: bool


@dataclass(frozen=True)
class PartitionEvents:
    """Events or impressions of a partition, old and new, sorted."""

    # Order and offsets.
    sorted: Sorted
    # Number of events that are already in the dataset.
    num_old: int
    # Item numbers of the kept events, in order.
    numbers: Ints
    # Times of the kept events, in order.
    times: Ints
    # Rows of the users of the kept events, in order.
    codes: Ints
    # Mask of the new events among them.
    is_new: Bools

    @classmethod
    def of(
        cls,
        table: pa.Table,
        codes: Ints,
        plan: GroupPlan,
        old: OldEvents | None,
        not_before: Ints | None,
        num_users: int,
    ) -> "PartitionEvents":
        """Sort the events of a partition.

        Args:
            table: new events, in the order of the log.
            codes: row of each event's user.
            plan: settings and vocabularies.
            old: events that are already in the dataset.
            not_before: earliest time of a new event of each user.
            num_users: number of users.
        """
        items = whole(table.column("item")).dictionary_encode()
        numbers = plan.ids["item"].of(items.dictionary).astype(np.int64)[items.indices.to_numpy()]
        times = table.column("time").to_numpy()
        if old is not None:
            numbers = np.concatenate((old.items, numbers))
            times = np.concatenate((old.times, times))
            codes = np.concatenate((np.repeat(np.arange(len(old.offsets) - 1), np.diff(old.offsets)), codes))
        num_old = len(old.items) if old is not None else 0
        in_order = sort_events(
            codes, times, numbers, num_users, plan.drop_duplicates, plan.max_events_per_user, num_old, not_before
        )
        order = in_order.order
        return cls(in_order, num_old, numbers[order], times[order], codes[order], order >= num_old)

    @property
    def new_order(self) -> pa.Array:
        """Positions of the kept new events in the given table."""
        return pa.array(self.sorted.order[self.is_new] - self.num_old)

    @property
    def new_numbers(self) -> npt.NDArray[np.int32]:
        """Item numbers of the kept new events."""
        return self.numbers[self.is_new].astype(np.int32)

    @property
    def new_times(self) -> Ints:
        """Times of the kept new events."""
        return self.times[self.is_new]

    @property
    def new_counts(self) -> Ints:
        """Number of kept new events of each user."""
        return np.bincount(self.codes[self.is_new], minlength=len(self.sorted.offsets) - 1)

    def lists(self, column: pa.Array, written: Written) -> pa.Array:
        """Return values of the new events as one list per written row."""
        offsets = np.concatenate(([0], np.cumsum(self.new_counts[written.rows])))
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), column)


def last_times(num_users: int, *old: OldEvents | None) -> Ints | None:
    """Return the time of each user's last event in the dataset; None if there is no dataset yet."""
    if not any(old):
        return None
    last = np.full(num_users, np.iinfo(np.int64).min)
    for events in filter(None, old):
        held = np.flatnonzero(np.diff(events.offsets))
        last[held] = np.maximum(last[held], events.times[events.offsets[held + 1] - 1])
    return last


def user_codes(given: PartitionInput) -> tuple[pa.Array, dict[str, Ints]]:
    """Return all users of the partition by row, and for each event the row of its user."""
    tables = {"events": given.events} | ({"history": given.history} if given.history is not None else {})
    chunks = [chunk for table in tables.values() for chunk in table.column("user").chunks]
    column = pa.chunked_array(chunks, given.events.column("user").type)
    values, codes = rank_values(column)
    if given.old is not None:
        known = pc.index_in(values, value_set=given.old.users)
        is_new = np.asarray(known.is_null())
        row = np.where(is_new, len(given.old.users) + np.cumsum(is_new) - 1, pc.fill_null(known, 0).to_numpy())
        values = pa.concat_arrays([given.old.users, values.filter(pa.array(is_new))])
        codes = row.astype(np.int64)[codes]
    ends = np.cumsum([table.num_rows for table in tables.values()])[:-1]
    return values, dict(zip(tables, np.split(codes, ends), strict=True))


def events_before(codes: Ints, times: Ints, history_codes: Ints, history_times: Ints) -> Ints:
    """Count for each (user, time) the events of the user's history strictly before it. All arrays are sorted by both."""
    # One sort of all, in which an impression comes before the events of its own time.
    both_codes = np.concatenate((codes, history_codes))
    both_times = np.concatenate((times, history_times))
    order = np.lexsort((np.arange(both_codes.size) >= codes.size, both_times, both_codes))
    is_history = order >= codes.size
    before = np.cumsum(is_history)
    num_before = np.empty(codes.size, np.int64)
    num_before[order[~is_history]] = before[~is_history]
    starts = np.searchsorted(history_codes, np.arange(int(codes.max(initial=-1)) + 1))
    return num_before - starts[codes] if codes.size else num_before
