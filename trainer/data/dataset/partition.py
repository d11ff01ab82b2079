"""One partition of the logs as rows of the dataset: its events sorted, encoded, split and counted.

Pure functions over Arrow tables. The invariant: the rows are a function of the partition's events and the plan alone.
An append computes the splits from all events of the partition, old and new. Counts by row come from the new events and
are added up. So preparing in two steps counts the same as preparing at once.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.features import Losses, NumericFit
from trainer.data.dataset.grouping import Bools, Ints, same_as_before
from trainer.data.dataset.hashing import hash_ids, whole
from trainer.data.dataset.partition_events import (
    GroupPlan,
    OldEvents,
    PartitionEvents,
    PartitionInput,
    Written,
    events_before,
    last_times,
    user_codes,
)
from trainer.data.dataset.partition_features import EventFeatures, UserFeatures
from trainer.data.dataset.profile import Profile, profile_of
from trainer.data.dataset.splits import LeaveOneOut, TimeBounds, cut_histories
from trainer.data.dataset.tied_order import tied_order_of
from trainer.data.logs.columns import SourceName


@dataclass(frozen=True)
class GroupCounts:
    """Counts of one partition, or sums over several; names as in trainer.data.dataset.manifest.Counts.

    rows_kept covers the current generation only.
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

    # Numbers of the items.
    numbers: Ints
    # Events of each item.
    num_events: Ints
    # Training events of each item.
    num_train_events: Ints
    # Test events of each item.
    num_test_events: Ints


@dataclass(frozen=True)
class Grouped:
    """One partition as rows of the dataset."""

    # Columns of a part (trainer/data/dataset/manifest.py); with `row` in a later generation.
    rows: pa.Table
    # Rows of the partition that existed before.
    num_old: int
    # (train_end, validation_end) of all rows.
    cuts: tuple[Ints, Ints]
    # By source and reason: positions in the given table.
    rejected: dict[tuple[SourceName, str], Ints]
    # Counts of the partition.
    counts: GroupCounts
    # Counts of targets by item.
    items: ItemCounts
    # Statistics for the data card.
    profile: Profile
    # For ranking: counts of history events by item.
    history_items: ItemCounts | None = None
    # Statistics of numeric features, by key.
    fits: dict[str, NumericFit] = field(default_factory=dict)
    # Lost values of each feature, by key.
    losses: dict[str, Losses] = field(default_factory=dict)


def sum_counts(counts: Iterable[GroupCounts]) -> GroupCounts:
    """Add up the counts of partitions."""
    return GroupCounts(*map(sum, zip(*map(astuple, counts), strict=True)))


def group_partition(given: PartitionInput, plan: GroupPlan) -> Grouped:
    """Turn a partition's events into rows, one per user: ascending by user, new users of an append after the known ones."""
    users, codes = user_codes(given)
    if plan.labels:
        return _group_impressions(given, plan, users, codes)
    old = given.old.history if given.old else None
    events = PartitionEvents.of(given.events, codes["events"], plan, old, last_times(len(users), old), len(users))
    train_end, validation_end = cut_histories(events.times, events.sorted.offsets, plan.cuts, hash_ids(users))
    split = _split_of(events.sorted.offsets, train_end, validation_end)
    written = Written(events.new_counts > 0 if given.old else np.ones(len(users), np.bool_), given.old is not None)
    columns: dict[str, pa.Array] = {"item": events.lists(pa.array(events.new_numbers), written)}
    columns["time"] = events.lists(pa.array(events.new_times), written)
    features = EventFeatures.of(given.events, events, plan, split, users)
    columns |= {key: events.lists(column, written) for key, column in features.columns.items()}
    num_old = len(given.old.users) if given.old else 0
    user_features = UserFeatures.of(given.users, users, num_old, plan, train_end > 0)
    lengths = np.diff(events.sorted.offsets)
    profile = profile_of(events.numbers, events.times, events.sorted.offsets, split, lengths, plan.bins)
    vocabulary = plan.ids["item"].vocabulary
    assert vocabulary is not None
    tied_order = tied_order_of(events.codes, events.times, events.numbers, vocabulary)
    return Grouped(
        rows=_table(users, written, columns, user_features.columns, train_end, validation_end),
        num_old=num_old,
        cuts=(train_end, validation_end),
        rejected=_rejected("logs", events) | user_features.rejected,
        counts=_counts(events, train_end, validation_end, plan, min_train=2),
        items=_count_items(events.numbers, split == 0, split == 2),
        profile=replace(profile, tied_order=tied_order),
        fits=features.fits | user_features.fits,
        losses=features.losses | user_features.losses,
    )


def _group_impressions(given: PartitionInput, plan: GroupPlan, users: pa.Array, codes: dict[str, Ints]) -> Grouped:
    """Group impressions, joined to their histories point in time: an impression sees only events strictly before it."""
    old = given.old
    old_shown = old.impressions if old else None
    old_history = old.history if old else None
    last_shown = last_times(len(users), old_shown)
    shown = PartitionEvents.of(given.events, codes["events"], plan, old_shown, last_shown, len(users))
    past, past_codes, num_of_source = _history_events(given, shown, codes, plan)
    # An event before an old impression would belong to that impression's history, which is already written.
    last = last_times(len(users), old_history, old_shown)
    history = PartitionEvents.of(past, past_codes, plan, old_history, last, len(users))
    train_end, validation_end = cut_histories(shown.times, shown.sorted.offsets, plan.cuts, hash_ids(users))
    split = _split_of(shown.sorted.offsets, train_end, validation_end)
    written = Written((shown.new_counts + history.new_counts) > 0, old is not None)
    features = EventFeatures.of(given.events, shown, plan, split, users)
    past_features = EventFeatures.of(past, history, plan, None, users)
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
    user_features = UserFeatures.of(given.users, users, num_old, plan, train_end > 0)
    profile = profile_of(
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
        profile=replace(profile, positives=_positives(shown, labels, old_shown, split)),
        history_items=_count_items(history.numbers, trains, np.zeros(trains.size, np.bool_)),
        fits=features.fits | user_features.fits,
        losses=features.losses | user_features.losses,
    )


def _positives(
    shown: "PartitionEvents", new: dict[str, pa.Array], old: OldEvents | None, split: npt.NDArray[np.int8]
) -> dict[str, Ints]:
    """Count for each label, by split, the impressions (old and new) where it is above 0."""
    counts = {}
    for name, column in new.items():
        above = np.zeros(split.size, np.bool_)
        above[shown.is_new] = column.to_numpy() > 0.0
        if old is not None:
            above[~shown.is_new] = old.labels[name] > 0.0  # all of them are kept, in their order
        counts[name] = np.bincount(split[above], minlength=3)
    return counts


def _is_training_time(times: Ints, plan: GroupPlan) -> Bools:
    """Return a mask of the times in the training period; under leave-one-out there is no such period, so all are."""
    return times < plan.cuts.validation_time if isinstance(plan.cuts, TimeBounds) else np.ones(times.size, np.bool_)


def _history_events(
    given: PartitionInput, shown: "PartitionEvents", codes: dict[str, Ints], plan: GroupPlan
) -> tuple[pa.Table, Ints, int]:
    """Return events of the history source, then impressions that became events; their users; the number from the source."""
    columns = ["item", "time", "row", *(spec.key for spec in plan.of("event"))]
    # An empty table of all columns, so that features which the source lacks become nulls of the right type.
    tables = [given.events.select(columns).slice(0, 0)]
    users = [np.zeros(0, np.int64)]
    if given.history is not None:
        tables.append(given.history.select([name for name in columns if name in given.history.column_names]))
        users.append(codes["history"])
    if plan.history_label is not None:
        chosen = shown.new_order.filter(
            pc.greater(whole(given.events.column(f"label.{plan.history_label}")).take(shown.new_order), 0.0)
        )
        chosen = chosen.take(pc.array_sort_indices(chosen))  # in the order of the log
        tables.append(given.events.select(columns).take(chosen))
        users.append(codes["events"][chosen.to_numpy()])
    num_of_source = given.history.num_rows if given.history is not None else 0
    return pa.concat_tables(tables, promote_options="default"), np.concatenate(users), num_of_source


def _split_of(offsets: Ints, train_end: Ints, validation_end: Ints) -> npt.NDArray[np.int8]:
    """Return the split of each event: 0, 1 or 2 for training, validation, test."""
    lengths = np.diff(offsets)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    after = (place >= np.repeat(train_end, lengths)).astype(np.int8)
    return after + (place >= np.repeat(validation_end, lengths))


def _table(
    users: pa.Array,
    written: Written,
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


def _rejected(
    source: SourceName, kind: PartitionEvents, num_of_source: int | None = None
) -> dict[tuple[SourceName, str], Ints]:
    """Return rejected positions in the source's table. Impressions that became history events are not rows of that source."""
    rejected: dict[tuple[SourceName, str], Ints] = {}
    for reason, positions in kind.sorted.rejected.items():
        positions = positions - kind.num_old
        if num_of_source is not None:
            positions = positions[positions < num_of_source]
        if positions.size:
            rejected[(source, reason)] = positions
    return rejected


def _counts(
    targets: PartitionEvents,
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
    items = np.flatnonzero(num_events)
    return ItemCounts(items, num_events[items], num_train_events[items], num_test_events[items])
