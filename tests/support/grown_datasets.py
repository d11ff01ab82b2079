"""Tiny datasets of several days for tests, with every kind of feature, with impressions, and with later days appended.

They are written by trainer's own functions, without Ray and its passes. Times are small, so that many are tied; users come and go
from day to day; row groups are small and unequal.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from sharding.config import HashIdsConfig, VocabularyIdsConfig
from trainer.data.dataset import writer
from trainer.data.dataset.features import Ids, feature_of, kind_of
from trainer.data.dataset.grouping import partition_events, sort_vocabulary
from trainer.data.dataset.manifest import Counts, Cuts, Feature, Manifest, Part, write_manifest
from trainer.data.dataset.partition import Grouped, group_partition, sum_counts
from trainer.data.dataset.partition_events import GroupPlan, OldEvents, OldRows, PartitionInput
from trainer.data.dataset.profile import TimeBins
from trainer.data.dataset.splits import LeaveOneOut, TimeBounds
from trainer.data.dataset.writer import OldGroups
from trainer.data.logs.config import (
    CategoricalFeatureConfig,
    FeatureSpec,
    NumericFeatureConfig,
    TimestampFeatureConfig,
    VectorFeatureConfig,
)
from trainer.data.stream.packed import joined
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader

NUM_ITEMS, NUM_PARTS, DAY = 30, 2, 100
LABELS = ("click", "like")
FITTED = {"transform": "none", "mean": 0.0, "std": 1.0}
SPECS = (
    FeatureSpec("event", "place", CategoricalFeatureConfig()),
    FeatureSpec("event", "tags", CategoricalFeatureConfig(table="tags")),
    FeatureSpec("event", "price", NumericFeatureConfig(kind="numeric", scale="none")),
    FeatureSpec("event", "published", TimestampFeatureConfig(kind="timestamp")),
    FeatureSpec("event", "vector", VectorFeatureConfig(kind="vector", dim=3)),
    FeatureSpec("user", "age", NumericFeatureConfig(kind="numeric", scale="none")),
    FeatureSpec("user", "languages", CategoricalFeatureConfig(table="tags")),
)
Tables = Mapping[str, pa.Table]


@dataclass(frozen=True)
class _Written:
    part: Part | None
    cuts: Cuts | None
    grouped: Grouped


def events_dataset(
    folder: Path,
    num_days: int = 1,
    num_users: int = 40,
    seed: int = 0,
    cuts: TimeBounds | None = None,
) -> Manifest:
    """Return histories with features, by default with a leave-one-out split; later days continue some users and add others."""
    days = [{"events": _events(day, num_users, seed), "users": _users(num_users * 2)} for day in range(num_days)]
    return _write_days(folder, days, cuts or LeaveOneOut(3), ())


def ranking_dataset(folder: Path, num_days: int = 1, num_users: int = 40, seed: int = 0) -> Manifest:
    """Return impressions with two labels; clicks become events of the history, further events come from logs of their own.

    The last third of the time is held out.
    """
    days = [
        {
            "events": _events(day, num_users, seed, labels=LABELS),
            "history": _events(day, num_users, seed + 1000),
            "users": _users(num_users * 2),
        }
        for day in range(num_days)
    ]
    end = DAY * num_days
    return _write_days(folder, days, TimeBounds(end * 2 // 3, end * 5 // 6), LABELS)


def _events(day: int, num_users: int, seed: int, labels: tuple[str, ...] = ()) -> pa.Table:
    random = np.random.default_rng([seed, day])
    # A third of the users of the day before has left, and as many are new; lengths are unequal.
    active = np.arange(num_users) + day * num_users // 3
    users = np.repeat(active, random.integers(1, 16, size=num_users))
    users = random.permutation(users)
    count = users.size
    labelled = {f"label.{name}": (random.random(count) < 0.5).astype(np.float32) for name in labels}
    return pa.table(
        {
            "user": pa.array([f"user-{user:03d}" for user in users]),
            "item": pa.array([f"item-{item:03d}" for item in random.integers(0, NUM_ITEMS, size=count)]),
            "time": pa.array(random.integers(day * DAY, (day + 1) * DAY, size=count), pa.int64()),
            "row": pa.array(np.arange(count)),
            "event.place": pa.array([f"place-{n}" for n in random.integers(0, 9, size=count)]),
            "event.tags": pa.array(
                [random.integers(0, 50, size=n).tolist() for n in random.integers(0, 4, size=count)]
            ),
            "event.price": pa.array(random.random(count).astype(np.float32)),
            "event.published": pa.array(random.integers(0, 10**9, size=count)),
            "event.vector": pa.array(random.random((count, 3)).astype(np.float32).tolist(), pa.list_(pa.float32())),
            **labelled,
        }
    )


def _users(count: int) -> pa.Table:
    random = np.random.default_rng(7)
    return pa.table(
        {
            "user": pa.array([f"user-{user:03d}" for user in range(count)]),
            "row": pa.array(np.arange(count)),
            "user.age": pa.array(random.integers(10, 90, size=count).astype(np.float32)),
            "user.languages": pa.array([random.integers(0, 50, size=n).tolist() for n in random.integers(0, 3, count)]),
        }
    )


def _write_days(
    folder: Path, days: list[dict[str, pa.Table]], cuts: LeaveOneOut | TimeBounds, labels: tuple[str, ...]
) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = sort_vocabulary(pa.chunked_array([[f"item-{item:03d}" for item in range(NUM_ITEMS)]]))
    ids = {"item": Ids(VocabularyIdsConfig(), vocabulary)}
    ids |= {name: Ids(HashIdsConfig(kind="hash", num_rows=20)) for name in ("place", "tags")}
    plan = GroupPlan(
        cuts, ids, SPECS, TimeBins(0, DAY * len(days)), labels=labels, history_label=labels[0] if labels else None
    )
    features = tuple(_feature(spec, ids) for spec in SPECS)
    manifest: Manifest | None = None
    for generation, day in enumerate(days):
        plan = replace(plan, fit=generation == 0)
        shares = {source: partition_events(table, NUM_PARTS) for source, table in day.items()}
        # At their real size, row groups of so few users would hold one row each.
        with mock.patch.object(writer, "MIN_ROW_GROUPS", 4):
            written = [
                _write_partition(folder, manifest, number, generation, plan, {s: shares[s][number] for s in shares})
                for number in range(NUM_PARTS)
            ]
        manifest = _manifest(folder, manifest, written, plan, features)
    assert manifest is not None
    return manifest


def _feature(spec: FeatureSpec, ids: Mapping[str, Ids]) -> Feature:
    kind = kind_of(spec, pa.list_(pa.int64()) if spec.name in ("tags", "languages") else pa.int64())
    feature = feature_of(spec, kind, ids)
    return Feature(**asdict(feature) | {"fitted": FITTED}) if kind == "numeric" else feature


def _write_partition(
    folder: Path,
    manifest: Manifest | None,
    number: int,
    generation: int,
    plan: GroupPlan,
    shares: Mapping[str, pa.RecordBatch],
) -> _Written:
    old_rows, old_groups = _old_rows(folder, manifest, number)
    tables = {source: pa.Table.from_batches([share]) for source, share in shares.items()}
    grouped = group_partition(PartitionInput(**tables, old=old_rows), plan)
    part = cuts = None
    if grouped.rows.num_rows:
        path = folder / f"part-{generation:03d}-{number:05d}.parquet"
        part = writer.write_part(path, grouped.rows, number, generation, old_groups)
    if generation:
        path = folder / f"cuts-{generation:03d}-{number:05d}.parquet"
        cuts = writer.write_cuts(path, grouped.cuts, writer.row_bounds(part, old_groups), number)
    return _Written(part, cuts, grouped)


def _old_rows(folder: Path, manifest: Manifest | None, number: int) -> tuple[OldRows | None, OldGroups]:
    if manifest is None:
        return None, OldGroups((), (0,))
    groups = sorted({g.group for part in manifest.parts if part.partition == number for g in part.row_groups})
    ranking = manifest.task == "ranking"
    reader = RowGroupReader(
        folder, manifest, ColumnSelection(users=True, times=True, impressions=ranking, numbers=True)
    )
    held = joined([reader.read([group])[group] for group in groups])
    bounds = np.concatenate(([0], np.cumsum([manifest.group_rows[group] for group in groups])))
    assert held.times is not None
    return (
        OldRows(held.users, _old_events(held, held.times), _old_events(held.impressions, held.impressions.times))
        if held.impressions is not None
        else OldRows(held.users, _old_events(held, held.times))
    ), OldGroups(tuple(groups), tuple(bounds.tolist()))


def _old_events(held: Any, times: np.ndarray) -> OldEvents:
    labels = getattr(held, "labels", {})
    return OldEvents(held.items.astype(np.int64), times, np.append(held.starts, held.items.size), labels)


def _manifest(
    folder: Path, old: Manifest | None, written: list[_Written], plan: GroupPlan, features: tuple[Feature, ...]
) -> Manifest:
    nothing = np.zeros(NUM_ITEMS, np.int64)
    catalogue = writer.write_catalogue(
        folder / "vocabulary-000-item.parquet",
        plan.ids["item"].vocabulary,
        np.arange(1, NUM_ITEMS + 1, dtype=np.int32),
        nothing,
        nothing,
    )
    counts = Counts(
        rows_read=0,
        rejected={},
        num_items=NUM_ITEMS,
        unknown_items=0,
        **asdict(sum_counts(one.grouped.counts for one in written)),
    )
    parts = [one.part for one in written if one.part is not None]
    manifest = Manifest(
        fingerprint="grown",
        source={"files": [], "columns": {}, "settings": {}},
        split={},
        counts=counts,
        vocabularies={"item": catalogue},
        parts=(*(old.parts if old else ()), *writer.numbered(parts, len(old.group_rows) if old else 0)),
        task="ranking" if plan.labels else "next_item",
        labels={"names": list(plan.labels)} if plan.labels else {},
        features=features,
        cuts=tuple(one.cuts for one in written if one.cuts is not None),
    )
    write_manifest(folder, manifest)
    return manifest
