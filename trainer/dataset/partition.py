"""One partition of the logs becomes rows of the dataset: its events sorted, encoded, cut, counted.

Pure functions over Arrow tables. The invariant: what is written is a function of the partition's events and the plan alone. An
append computes what the splits decide from all events of the partition, old and new, and what is counted row by row
from the new ones, to be added up, so that preparing in two steps counts what preparing at once counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.dataset.features import Ids, Losses, NumericFit, encode
from trainer.dataset.grouping import (
    Bools,
    Ints,
    Sorted,
    rank_values,
    same_as_before,
    sort_events,
)
from trainer.dataset.hashing import Hashes, hash_ids, mix, whole
from trainer.dataset.profile import Profile, TimeBins, profile_of
from trainer.dataset.splits import Cuts, LeaveOneOut, TimeBounds, cut_histories
from trainer.logs.config import FeatureSpec, NumericFeatureConfig
from trainer.logs.contract import SourceName

REPEATED_USER = "duplicate user"


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
    """The rows of one partition from each source, in the order of the log (trainer/logs/contract.py), and what is there."""

    events: pa.Table
    history: pa.Table | None = None
    users: pa.Table | None = None
    old: OldRows | None = None


@dataclass(frozen=True)
class GroupCounts:
    """What one partition holds, or the sum over several; names as in trainer.dataset.manifest.Counts.

    rows_kept: of this generation only.
    """

    rows_kept: int = 0
    num_users: int = 0
    train_events: int = 0
    validation_targets: int = 0
    test_targets: int = 0
    users_without_targets: int = 0
    users_not_evaluated: int = 0
    tied_times: int = 0
    history_events: int = 0


@dataclass(frozen=True)
class ItemCounts:
    """Events of each item that occurs, ascending by number."""

    numbers: Ints
    num_events: Ints
    num_train_events: Ints
    num_test_events: Ints


@dataclass(frozen=True)
class Grouped:
    """One partition as rows of the dataset.

    rows: the columns of a part (trainer/dataset/manifest.py), of a next generation with `row`; num_old: rows of the partition
    that were there before; cuts: (train_end, validation_end) of all rows; rejected: by source and reason, positions in the
    table given; items, history_items: of targets, and for ranking of histories; losses: of each feature.
    """

    rows: pa.Table
    num_old: int
    cuts: tuple[Ints, Ints]
    rejected: dict[tuple[SourceName, str], Ints]
    counts: GroupCounts
    items: ItemCounts
    profile: Profile
    history_items: ItemCounts | None = None
    fits: dict[str, NumericFit] = field(default_factory=dict)
    losses: dict[str, Losses] = field(default_factory=dict)


def sum_counts(counts: Iterable[GroupCounts]) -> GroupCounts:
    return GroupCounts(*map(sum, zip(*map(astuple, counts), strict=True)))


def group_partition(given: PartitionInput, plan: GroupPlan) -> Grouped:
    """Turn a partition's events into rows, one per user: ascending by user, an append's new users after the known ones."""
    users, codes = _user_codes(given)
    if plan.labels:
        return _group_impressions(given, plan, users, codes)
    old = given.old.history if given.old else None
    events = _Kind.of(given.events, codes["events"], plan, old, _last_times(len(users), old), len(users))
    train_end, validation_end = cut_histories(events.times, events.sorted.offsets, plan.cuts)
    split = _split_of(events.sorted.offsets, train_end, validation_end)
    written = _Written(events.new_counts > 0 if given.old else np.ones(len(users), np.bool_), given.old is not None)
    columns: dict[str, pa.Array] = {"item": events.lists(pa.array(events.new_numbers), written)}
    columns["time"] = events.lists(pa.array(events.new_times), written)
    features = _EventFeatures.of(given.events, events, plan, split, users)
    columns |= {key: events.lists(column, written) for key, column in features.columns.items()}
    num_old = len(given.old.users) if given.old else 0
    user_features = _UserFeatures.of(given.users, users, num_old, plan, train_end > 0)
    lengths = np.diff(events.sorted.offsets)
    return Grouped(
        rows=_table(users, written, columns, user_features.columns, train_end, validation_end),
        num_old=num_old,
        cuts=(train_end, validation_end),
        rejected=_rejected("logs", events) | user_features.rejected,
        counts=_counts(events, train_end, validation_end, plan, min_train=2),
        items=_count_items(events.numbers, split == 0, split == 2),
        profile=profile_of(events.numbers, events.times, events.sorted.offsets, split, lengths, plan.bins),
        fits=features.fits | user_features.fits,
        losses=features.losses | user_features.losses,
    )


def _group_impressions(given: PartitionInput, plan: GroupPlan, users: pa.Array, codes: dict[str, Ints]) -> Grouped:
    """Impressions, and the histories that they are joined to point in time: an impression sees events strictly before it."""
    old = given.old
    old_shown, old_history = (old.impressions, old.history) if old else (None, None)
    last_shown = _last_times(len(users), old_shown)
    shown = _Kind.of(given.events, codes["events"], plan, old_shown, last_shown, len(users))
    past, past_codes, num_of_source = _history_events(given, shown, codes, plan)
    # An event before an old impression belongs into that impression's history, which is written already.
    last = _last_times(len(users), old_history, old_shown)
    history = _Kind.of(past, past_codes, plan, old_history, last, len(users))
    train_end, validation_end = cut_histories(shown.times, shown.sorted.offsets, plan.cuts)
    split = _split_of(shown.sorted.offsets, train_end, validation_end)
    written = _Written((shown.new_counts + history.new_counts) > 0, old is not None)
    features = _EventFeatures.of(given.events, shown, plan, split, users)
    past_features = _EventFeatures.of(past, history, plan, None, users)
    columns: dict[str, pa.Array] = {"item": history.lists(pa.array(history.new_numbers), written)}
    columns["time"] = history.lists(pa.array(history.new_times), written)
    columns |= {key: history.lists(column, written) for key, column in past_features.columns.items()}
    before = events_before(shown.codes, shown.times, history.codes, history.times)
    columns["impression.item"] = shown.lists(pa.array(shown.new_numbers), written)
    columns["impression.time"] = shown.lists(pa.array(shown.new_times), written)
    columns["impression.history_end"] = shown.lists(pa.array(before[shown.is_new].astype(np.int32)), written)
    labels = {name: whole(given.events.column(f"label.{name}")).take(shown.new_order) for name in plan.labels}
    columns |= {f"label.{name}": shown.lists(column, written) for name, column in labels.items()}
    columns |= {
        "impression." + key.removeprefix("event."): shown.lists(column, written)
        for key, column in features.columns.items()
    }
    num_old = len(old.users) if old else 0
    user_features = _UserFeatures.of(given.users, users, num_old, plan, train_end > 0)
    found = profile_of(
        shown.numbers, shown.times, shown.sorted.offsets, split, np.diff(history.sorted.offsets), plan.bins
    )
    counts = _counts(shown, train_end, validation_end, plan, min_train=1)
    trains = _is_training_time(history.times, plan)
    kept_of_source = int((history.new_order.to_numpy() < num_of_source).sum())
    return Grouped(
        rows=_table(users, written, columns, user_features.columns, train_end, validation_end),
        num_old=num_old,
        cuts=(train_end, validation_end),
        rejected=_rejected("logs", shown) | _rejected("history", history, num_of_source) | user_features.rejected,
        counts=replace(counts, rows_kept=counts.rows_kept + kept_of_source, history_events=history.numbers.size),
        items=_count_items(shown.numbers, split == 0, split == 2),
        profile=replace(found, positives=_positives(shown, labels, old_shown, split)),
        history_items=_count_items(history.numbers, trains, np.zeros(trains.size, np.bool_)),
        fits=features.fits | user_features.fits,
        losses=features.losses | user_features.losses,
    )


def _positives(
    shown: "_Kind", new: dict[str, pa.Array], old: OldEvents | None, split: npt.NDArray[np.int8]
) -> dict[str, Ints]:
    """Of each label, by split: how many impressions, old and new, have one above 0."""
    found = {}
    for name, column in new.items():
        above = np.zeros(split.size, np.bool_)
        above[shown.is_new] = column.to_numpy() > 0.0
        if old is not None:
            above[~shown.is_new] = old.labels[name] > 0.0  # they stay, in their order
        found[name] = np.bincount(split[above], minlength=3)
    return found


def _is_training_time(times: Ints, plan: GroupPlan) -> Bools:
    """Of events that are no targets; under leave-one-out there is no such time."""
    return times < plan.cuts.validation_time if isinstance(plan.cuts, TimeBounds) else np.ones(times.size, np.bool_)


def _history_events(
    given: PartitionInput, shown: "_Kind", codes: dict[str, Ints], plan: GroupPlan
) -> tuple[pa.Table, Ints, int]:
    """Events of the history source, then the impressions that became events; their users; how many are of the source."""
    columns = ["item", "time", "row", *(spec.key for spec in plan.of("event"))]
    # An empty table of all columns, so that features which the source lacks become nulls of the right type.
    tables, found = [given.events.select(columns).slice(0, 0)], [np.zeros(0, np.int64)]
    if given.history is not None:
        tables.append(given.history.select([name for name in columns if name in given.history.column_names]))
        found.append(codes["history"])
    if plan.history_label is not None:
        chosen = shown.new_order.filter(
            pc.greater(whole(given.events.column(f"label.{plan.history_label}")).take(shown.new_order), 0.0)
        )
        chosen = chosen.take(pc.array_sort_indices(chosen))  # in the order of the log
        tables.append(given.events.select(columns).take(chosen))
        found.append(codes["events"][chosen.to_numpy()])
    num_of_source = given.history.num_rows if given.history is not None else 0
    return pa.concat_tables(tables, promote_options="default"), np.concatenate(found), num_of_source


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


@dataclass(frozen=True)
class _Written:
    """Which rows of the partition are written now, and whether they continue others."""

    rows: Bools
    appended: bool


@dataclass(frozen=True)
class _Kind:
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
    ) -> "_Kind":
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

    def lists(self, column: pa.Array, written: _Written) -> pa.Array:
        """Values of the new events as one list per row that is written."""
        offsets = np.concatenate(([0], np.cumsum(self.new_counts[written.rows])))
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), column)


def _last_times(num_users: int, *old: OldEvents | None) -> Ints | None:
    """Of each user, the time of the last event that the dataset has; None where there is no dataset yet."""
    if not any(old):
        return None
    last = np.full(num_users, np.iinfo(np.int64).min)
    for events in filter(None, old):
        held = np.flatnonzero(np.diff(events.offsets))
        last[held] = np.maximum(last[held], events.times[events.offsets[held + 1] - 1])
    return last


def _user_codes(given: PartitionInput) -> tuple[pa.Array, dict[str, Ints]]:
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


def _split_of(offsets: Ints, train_end: Ints, validation_end: Ints) -> npt.NDArray[np.int8]:
    """0, 1 or 2 for each event: training, validation, test."""
    lengths = np.diff(offsets)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    after = (place >= np.repeat(train_end, lengths)).astype(np.int8)
    return after + (place >= np.repeat(validation_end, lengths))


@dataclass(frozen=True)
class _EventFeatures:
    """columns: by key, stored values of the new events in order; fits of numbers on the training part."""

    columns: dict[str, pa.Array]
    fits: dict[str, NumericFit]
    losses: dict[str, Losses]

    @classmethod
    def of(
        cls,
        table: pa.Table,
        kind: _Kind,
        plan: GroupPlan,
        split: npt.NDArray[np.int8] | None,
        users: pa.Array,
    ) -> "_EventFeatures":
        columns, fits, losses = {}, {}, {}
        keys: Hashes | None = None
        for spec in plan.of("event"):
            # Only what stays is encoded, so that nothing is counted of rejected events.
            encoded = encode(spec, whole(table.column(spec.key)).take(kind.new_order), plan.ids)
            columns[spec.key], losses[spec.key] = encoded.column, encoded.losses
            if isinstance(spec.config, NumericFeatureConfig) and plan.fit and split is not None:
                keys = _event_keys(kind, users) if keys is None else keys
                trains = split[kind.is_new] == 0
                numbers = columns[spec.key].to_numpy(zero_copy_only=False)
                fits[spec.key] = NumericFit.of(spec.config, numbers[trains], keys[kind.is_new][trains])
        return cls(columns, fits, losses)


def _event_keys(kind: _Kind, users: pa.Array) -> Hashes:
    """A hash of (user, place in the history) for each event."""
    place = np.arange(kind.codes.size) - kind.sorted.offsets[kind.codes]
    return mix(hash_ids(users)[kind.codes] ^ mix(place.astype(np.uint64)))


@dataclass(frozen=True)
class _UserFeatures:
    """columns: by key, a stored value for every row, null where the row was there before and has its values."""

    columns: dict[str, pa.Array]
    fits: dict[str, NumericFit]
    losses: dict[str, Losses]
    rejected: dict[tuple[SourceName, str], Ints]

    @classmethod
    def of(
        cls, table: pa.Table | None, users: pa.Array, num_old: int, plan: GroupPlan, trains: Bools
    ) -> "_UserFeatures":
        specs = plan.of("user")
        if table is None:
            return cls({}, {}, {}, {})
        kept, repeated = first_of_each(table.column("user"))
        place = pc.index_in(users.slice(num_old), value_set=whole(table.column("user")).take(kept))
        columns, fits, losses = {}, {}, {}
        for spec in specs:
            # Only what is joined is encoded, so that the counts are those of the dataset's users.
            encoded = encode(spec, whole(table.column(spec.key)).take(kept).take(place), plan.ids)
            columns[spec.key] = pa.concat_arrays([pa.nulls(num_old, encoded.column.type), encoded.column])
            losses[spec.key] = encoded.losses
            if isinstance(spec.config, NumericFeatureConfig) and plan.fit:
                numbers = encoded.column.to_numpy(zero_copy_only=False)
                fits[spec.key] = NumericFit.of(spec.config, numbers[trains], hash_ids(users)[trains])
        rejected: dict[tuple[SourceName, str], Ints] = {}
        if repeated.size:
            rejected[("users", REPEATED_USER)] = repeated
        return cls(columns, fits, losses, rejected)


def first_of_each(values: pa.ChunkedArray) -> tuple[pa.Array, Ints]:
    """Positions of the first row of every distinct value, and of all other rows, both ascending."""
    codes = whole(values).dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    first.sort()
    repeated = np.ones(codes.size, np.bool_)
    repeated[first] = False
    return pa.array(first), np.flatnonzero(repeated)


def _table(
    users: pa.Array,
    written: _Written,
    lists: dict[str, pa.Array],
    of_users: dict[str, pa.Array],
    train_end: Ints,
    validation_end: Ints,
) -> pa.Table:
    rows = pa.array(np.flatnonzero(written.rows).astype(np.int32))
    everyone = bool(written.rows.all())
    columns = {"user": users if everyone else users.take(rows)}
    if written.appended:
        columns["row"] = rows
    columns |= lists
    columns |= {key: column if everyone else column.take(rows) for key, column in of_users.items()}
    if not written.appended:
        columns["train_end"] = pa.array(train_end.astype(np.int32)).take(rows)
        columns["validation_end"] = pa.array(validation_end.astype(np.int32)).take(rows)
    return pa.table(columns)


def _rejected(source: SourceName, kind: _Kind, num_of_source: int | None = None) -> dict[tuple[SourceName, str], Ints]:
    """Positions in the source's table. Of history events, those that impressions became are no rows of the source."""
    found: dict[tuple[SourceName, str], Ints] = {}
    for reason, positions in kind.sorted.rejected.items():
        positions = positions - kind.num_old
        if num_of_source is not None:
            positions = positions[positions < num_of_source]
        if positions.size:
            found[(source, reason)] = positions
    return found


def _counts(
    targets: _Kind,
    train_end: Ints,
    validation_end: Ints,
    plan: GroupPlan,
    min_train: int,
) -> GroupCounts:
    lengths = np.diff(targets.sorted.offsets)
    return GroupCounts(
        rows_kept=int(targets.is_new.sum()),
        num_users=lengths.size,
        train_events=int(train_end.sum()),
        validation_targets=int((validation_end - train_end).sum()),
        test_targets=int((lengths - validation_end).sum()),
        users_without_targets=int((train_end < min_train).sum()),
        users_not_evaluated=int((lengths < plan.cuts.min_events).sum()) if isinstance(plan.cuts, LeaveOneOut) else 0,
        tied_times=int(same_as_before(targets.codes, targets.times).sum()),
    )


def _count_items(numbers: Ints, trains: Bools, tests: Bools) -> ItemCounts:
    num_events = np.bincount(numbers)
    num_train_events, num_test_events = (np.bincount(numbers[of], minlength=len(num_events)) for of in (trains, tests))
    found = np.flatnonzero(num_events)
    return ItemCounts(found, num_events[found], num_train_events[found], num_test_events[found])
