"""Tiny datasets on disk for tests, written by trainer's own functions and without Ray.

Histories are random walks over a ring of items, so that a model can learn something from them; a few users have one or two
events, some times are tied, ids are strings, and row groups are small and unequal.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from sharding.config import VocabularyIdsConfig
from trainer.data.dataset import writer
from trainer.data.dataset.features import Ids
from trainer.data.dataset.grouping import partition_events, sort_vocabulary
from trainer.data.dataset.manifest import Counts, Manifest, write_manifest
from trainer.data.dataset.partition import Grouped, group_partition, sum_counts
from trainer.data.dataset.partition_events import GroupPlan, PartitionInput
from trainer.data.dataset.profile import TimeBins
from trainer.data.dataset.splits import Cuts, LeaveOneOut, TimeBounds, UserHoldout
from trainer.data.dataset.writer import OldGroups

MIN_EVENTS = 3
LEAVE_ONE_OUT = LeaveOneOut(MIN_EVENTS)


def tiny_dataset(
    folder: Path,
    num_users: int = 60,
    num_items: int = 40,
    seed: int = 0,
    mean_events: int = 12,
    num_parts: int = 2,
    groups_per_part: int = 5,
    cuts: Cuts = LEAVE_ONE_OUT,
) -> Manifest:
    """Write a dataset, by default with a leave-one-out split, into `folder` and return its manifest.

    Every item occurs if there are at least as many users as items. Equal arguments give equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events = tiny_events(num_users, num_items, seed, mean_events)
    vocabulary = sort_vocabulary(events.column("item"))
    times = events.column("time").to_numpy()
    plan = GroupPlan(
        cuts=cuts,
        ids={"item": Ids(VocabularyIdsConfig(), vocabulary)},
        specs=(),
        bins=TimeBins(int(times.min()), int(times.max())),
    )
    grouped = [
        group_partition(PartitionInput(pa.Table.from_batches([batch])), plan)
        for batch in partition_events(events, num_parts)
        if batch.num_rows
    ]
    # At their real size, row groups of so few users would hold one row each.
    with mock.patch.object(writer, "MIN_ROW_GROUPS", groups_per_part):
        parts = [
            writer.write_part(folder / f"part-000-{number:05d}.parquet", group.rows, number, 0, OldGroups((), (0,)))
            for number, group in enumerate(grouped)
        ]
    num_events, num_train_events = np.zeros((2, len(vocabulary) + 1), np.int64)
    for group in grouped:
        num_events[group.items.numbers] += group.items.num_events
        num_train_events[group.items.numbers] += group.items.num_train_events
    manifest = Manifest(
        fingerprint=f"tiny-{num_users}-{num_items}-{seed}-{mean_events}-{num_parts}-{groups_per_part}",
        source={"files": [], "columns": {}, "settings": {}},
        split=_split_settings(cuts),
        counts=_counts_of(grouped, events.num_rows, len(vocabulary)),
        vocabularies={
            "item": writer.write_catalogue(
                folder / "vocabulary-000-item.parquet",
                vocabulary,
                np.arange(1, len(vocabulary) + 1, dtype=np.int32),
                num_events[1:],
                num_train_events[1:],
            )
        },
        parts=writer.numbered(parts, 0),
    )
    write_manifest(folder, manifest)
    return manifest


def _split_settings(cuts: Cuts) -> dict[str, Any]:
    """Return what a manifest holds of a split."""
    match cuts:
        case LeaveOneOut():
            return {"kind": "leave_one_out", "min_events": cuts.min_events}
        case UserHoldout():
            return {"kind": "user_holdout", **asdict(cuts)}
        case _:
            return {"kind": "global_time", **asdict(cuts)}


def _counts_of(grouped: list[Grouped], rows_read: int, num_items: int) -> Counts:
    """Return the counts of grouped partitions without unknown items; every rejected row is a duplicate."""
    duplicates = sum(len(rows) for group in grouped for rows in group.rejected.values())
    return Counts(
        rows_read=rows_read,
        rejected={"duplicate": duplicates} if duplicates else {},
        num_items=num_items,
        unknown_items=0,
        **asdict(sum_counts(group.counts for group in grouped)),
    )


def tiny_ranking_dataset(
    folder: Path, shown: pa.Table, past: pa.Table, num_parts: int = 2, labels: tuple[str, ...] = ("click",)
) -> Manifest:
    """Return impressions (user, item, time, label.click ...) and events of histories (user, item, time) as a dataset for ranking.

    Users are strings, times integers below 100: those below 60 train, those from 80 on test. Clicks become events.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = sort_vocabulary(pa.chunked_array([*shown.column("item").chunks, *past.column("item").chunks]))
    ids = {"item": Ids(VocabularyIdsConfig(), vocabulary)}
    plan = GroupPlan(TimeBounds(60, 80), ids, (), TimeBins(0, 100), labels=labels, history_label="click")
    sources = [table.append_column("row", pa.array(np.arange(table.num_rows))) for table in (shown, past)]
    shares = [partition_events(table, num_parts) for table in sources]
    grouped = [
        group_partition(PartitionInput(*(pa.Table.from_batches([share]) for share in pair)), plan)
        for pair in zip(*shares, strict=True)
    ]
    with mock.patch.object(writer, "MIN_ROW_GROUPS", 5):
        parts = [
            writer.write_part(folder / f"part-000-{number:05d}.parquet", group.rows, number, 0, OldGroups((), (0,)))
            for number, group in enumerate(grouped)
        ]
    totals = asdict(sum_counts(group.counts for group in grouped))
    counts = Counts(rows_read=shown.num_rows, rejected={}, num_items=len(vocabulary), unknown_items=0, **totals)
    manifest = Manifest(
        "tiny-ranking",
        {"time": {"kind": "integer", "first": 0, "last": 99}},
        {"kind": "global_time", "validation_time": 60, "test_time": 80},
        counts,
        {},
        writer.numbered(parts, 0),
        task="ranking",
        labels={"names": list(labels), "positives": {name: _positives(shown, name) for name in labels}},
    )
    write_manifest(folder, manifest)
    return manifest


def _positives(shown: pa.Table, label: str) -> dict[str, int]:
    period = np.digitize(shown.column("time").to_numpy(), [60, 80])
    counts = np.bincount(period, shown.column(f"label.{label}").to_numpy() > 0, minlength=3)
    return dict(zip(("train", "validation", "test"), counts.astype(int).tolist(), strict=True))


def manifest_of_items(num_items: int) -> Manifest:
    """Return all that building a model asks of a dataset; there are no files behind it."""
    counts = Counts(0, 0, {}, 0, num_items, 0, 0, 0, 0, 0, 0, 0)
    return Manifest("no files", {}, {"kind": "leave_one_out"}, counts, {}, ())


def tiny_events(num_users: int, num_items: int, seed: int, mean_events: int) -> pa.Table:
    """Return user, item (strings) and time of all events, in the order of a log: by time over all users."""
    random = np.random.default_rng(seed)
    users, items, times = [], [], []
    for user in range(num_users):
        # Users 0 and 1 are too short to be evaluated; the others' lengths spread around the mean.
        length = user + 1 if user < 2 else max(3, int(random.integers(mean_events // 2, mean_events * 3 // 2 + 1)))
        item, time = user % num_items, int(random.integers(0, 100))
        for _ in range(length):
            users.append(f"user-{user:04d}")
            items.append(f"item-{item:04d}")
            times.append(time)
            follows = random.random() < 0.7
            item = (item + 1) % num_items if follows else int(random.integers(num_items))
            time += int(random.integers(0, 5))
    order = np.argsort(times, kind="stable")
    table = pa.table({"user": users, "item": items, "time": pa.array(times, pa.int64())})
    return table.take(pa.array(order))
