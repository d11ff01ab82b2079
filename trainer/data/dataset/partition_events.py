"""The events of one partition, old and new, brought into order: who they belong to, and which of them stay.

Pure functions over Arrow tables and numpy arrays; trainer/data/dataset/partition.py makes rows of them.
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
from trainer.data.dataset.splits import Cuts
from trainer.data.logs.config import FeatureSpec


@dataclass(frozen=True)
class GroupPlan:
    """How partitions become rows. ids: of every table, "item" among them, whose vocabulary is the catalogue.

    specs: all features; labels: names, empty unless the dataset is for ranking; fit: whether numbers are still to be fitted,
    which an append leaves as they are.
    """

    cuts: Cuts
    ids: Mapping[str, Ids]
    specs: tuple[FeatureSpec, ...]
    bins: TimeBins
    drop_duplicates: bool = True
    max_events_per_user: int | None = None
    labels: tuple[str, ...] = ()
    history_label: str | None = None
    fit: bool = True

    def of(self, owner: str) -> tuple[FeatureSpec, ...]:
        return tuple(spec for spec in self.specs if spec.owner == owner)


@dataclass(frozen=True)
class OldEvents:
    """Events that the dataset has of a partition: numbers, times, offsets (num_rows + 1,), all int64; labels of impressions."""

    items: Ints
    times: Ints
    offsets: Ints
    labels: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class OldRows:
    """What an append continues: the users of a partition's rows, in their order, and their events."""

    users: pa.Array
    history: OldEvents
    impressions: OldEvents | None = None


@dataclass(frozen=True)
class PartitionInput:
    """The rows of one partition from each source, in the order of the log (trainer/data/logs/contract.py), and what is there."""

    events: pa.Table
    history: pa.Table | None = None
    users: pa.Table | None = None
    old: OldRows | None = None


@dataclass(frozen=True)
class Written:
    """Which rows of the partition are written now, and whether they continue others."""

    rows: Bools
    appended: bool


@dataclass(frozen=True)
class Kind:
    """Events or impressions of a partition, old and new, sorted. numbers, times, codes: of those that stay, in order."""

    sorted: Sorted
    num_old: int
    numbers: Ints
    times: Ints
    codes: Ints
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
    ) -> "Kind":
        items = whole(table.column("item")).dictionary_encode()
        numbers = plan.ids["item"].of(items.dictionary).astype(np.int64)[items.indices.to_numpy()]
        times = table.column("time").to_numpy()
        if old is not None:
            numbers, times = np.concatenate((old.items, numbers)), np.concatenate((old.times, times))
            codes = np.concatenate((np.repeat(np.arange(len(old.offsets) - 1), np.diff(old.offsets)), codes))
        num_old = len(old.items) if old is not None else 0
        found = sort_events(
            codes, times, numbers, num_users, plan.drop_duplicates, plan.max_events_per_user, num_old, not_before
        )
        order = found.order
        return cls(found, num_old, numbers[order], times[order], codes[order], order >= num_old)

    @property
    def new_order(self) -> pa.Array:
        """Positions in the table given, of the new events that stay."""
        return pa.array(self.sorted.order[self.is_new] - self.num_old)

    @property
    def new_numbers(self) -> npt.NDArray[np.int32]:
        return self.numbers[self.is_new].astype(np.int32)

    @property
    def new_times(self) -> Ints:
        return self.times[self.is_new]

    @property
    def new_counts(self) -> Ints:
        """Of each user."""
        return np.bincount(self.codes[self.is_new], minlength=len(self.sorted.offsets) - 1)

    def lists(self, column: pa.Array, written: Written) -> pa.Array:
        """Values of the new events as one list per row that is written."""
        offsets = np.concatenate(([0], np.cumsum(self.new_counts[written.rows])))
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), column)


def last_times(num_users: int, *old: OldEvents | None) -> Ints | None:
    """Of each user, the time of the last event that the dataset has; None where there is no dataset yet."""
    if not any(old):
        return None
    last = np.full(num_users, np.iinfo(np.int64).min)
    for events in filter(None, old):
        held = np.flatnonzero(np.diff(events.offsets))
        last[held] = np.maximum(last[held], events.times[events.offsets[held + 1] - 1])
    return last


def user_codes(given: PartitionInput) -> tuple[pa.Array, dict[str, Ints]]:
    """All users of the partition by row, and for each event the row of its user."""
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
    """For each (user, time), how many events of the same user's history lie strictly before it. All sorted by both."""
    # One sort of all, in which an impression comes before the events of its own time.
    both_codes, both_times = np.concatenate((codes, history_codes)), np.concatenate((times, history_times))
    order = np.lexsort((np.arange(both_codes.size) >= codes.size, both_times, both_codes))
    is_history = order >= codes.size
    before = np.cumsum(is_history)
    found = np.empty(codes.size, np.int64)
    found[order[~is_history]] = before[~is_history]
    starts = np.searchsorted(history_codes, np.arange(int(codes.max(initial=-1)) + 1))
    return found - starts[codes] if codes.size else found
