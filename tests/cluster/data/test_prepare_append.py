"""Appending: day after day gives what preparing all days at once gives, and touches nothing that was written."""

import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config.run_config import Config
from tests.support.prepared import (
    Row,
    config_at,
    item_ids,
    made,
    refusal,
    rejected_rows,
    rows_by_user,
    vocabulary,
    write_events,
    write_table,
)
from trainer.data.dataset.manifest import Manifest, read_manifest, verify_dataset, write_manifest
from trainer.storage.files import hash_file

pytestmark = pytest.mark.usefixtures("ray_session")

LEAVE_ONE_OUT = {"kind": "leave_one_out"}
COLORS = ("red", "green", "blue")


def random_days(seed: int, num_days: int, as_text: bool) -> list[list[tuple[Any, ...]]]:
    """Events (user, item, time, click, color, brand, price) of each day, times from 100 d on; some occur twice.

    Users and items join later and stay away for days; every color occurs on the first day, brands come anew.
    """
    choose = random.Random(seed)
    days = []
    for day in range(num_days):
        first, last = choose.choice([(0, 25), (15, 30 + 10 * day)])
        events = []
        for _ in range(choose.choice([3, 80, 150]) if day else 200):
            user, item = choose.randint(first, last), choose.randint(1, 12 + 6 * day)
            color, brand = choose.choice([*COLORS, None]), choose.randint(0, 3 + 5 * day)
            time, price = 100 * day + choose.randint(0, 20), choose.choice([None, 2.0, float(choose.randint(0, 9))])
            events.append((user, item, time, float(choose.random() < 0.5), color, brand, price))
        events += choose.sample(events, 3)
        days.append([(f"u{e[0]}", f"i{e[1]}", *e[2:]) if as_text else e for e in events])
    return days


def columns_config(ranking: bool) -> dict[str, Any]:
    features = {
        "color": {"kind": "categorical"},
        "brand": {"kind": "categorical", "table": "hashed"},
        "raw": {"kind": "categorical", "column": "brand"},
        "price": {"kind": "numeric", "scale": "none"},
    }
    return {"features": features} | ({"labels": ["click"], "history_label": "click"} if ranking else {})


TABLES = {
    "hashed": {"ids": {"kind": "hash", "num_rows": 4}},
    "raw": {"ids": {"kind": "dynamic", "num_rows": 9}},
}


def write_day(folder: Path, day: int, events: list[tuple[Any, ...]]) -> None:
    write_events(folder / f"day-{day}.parquet", events, "click", "color", "brand", "price", row_group_size=60)


def splits_of(kind: str, num_days: int) -> list[dict[str, Any]]:
    """The split of each generation. Bounds that move: the last day tests and the one before validates."""
    if kind == "leave_one_out":
        return [LEAVE_ONE_OUT] * num_days
    if kind == "fixed":
        return [{"kind": "global_time", "validation_time": 100, "test_time": 200}] * num_days
    bounds = [(100 * day - 90, 100 * day + 10) for day in range(1, num_days + 1)]
    return [{"kind": "global_time", "validation_time": first, "test_time": last} for first, last in bounds]


def comparable(config: Config) -> dict[Any, Any]:
    """A dataset without what the numbering of items decides."""
    rows = rows_by_user(config)
    return {user: (r.events, r.impressions, r.features, r.train_end, r.validation_end) for user, r in rows.items()}


def counted(manifest: Manifest) -> dict[str, Any]:
    features = [(f.column, f.num_missing, f.num_unknown, f.num_cut, f.collisions) for f in manifest.features]
    return {
        "counts": manifest.counts, "labels": manifest.labels, "profile": manifest.profile, "features": features,
        "time": manifest.source["time"], "rows": [file["rows"] for file in manifest.source["files"]],
    }  # fmt: skip


def uses_of_items(config: Config) -> dict[Any, tuple[bool, int, int]]:
    """Of each item: whether it is known, and its events, all and training."""
    manifest = read_manifest(config.dataset_dir)
    table = pq.read_table(config.dataset_dir / manifest.vocabulary.path).to_pylist()
    return {row["value"]: (row["id"] > 0, row["num_events"], row["num_train_events"]) for row in table}


def state_of(config: Config) -> tuple[dict[str, tuple[str, int]], dict[Any, Row], dict[Any, int], list[Any]]:
    """What an append must not change: parts with their time of change, rows, ids, numbers."""
    manifest = read_manifest(config.dataset_dir)
    paths = [config.dataset_dir / part.path for part in manifest.parts]
    parts = {path.name: (hash_file(path), path.stat().st_mtime_ns) for path in paths}
    return parts, rows_by_user(config), item_ids(config), vocabulary(config)


CASES = [
    (1, 2, "leave_one_out", False, False),
    (2, 4, "leave_one_out", True, False),
    (3, 3, "leave_one_out", True, True),
    (4, 4, "fixed", False, True),
    (5, 3, "fixed", True, False),
    (6, 4, "moving", True, True),
    (7, 4, "moving", False, False),
    (8, 3, "moving", True, False),
]


@pytest.mark.parametrize(("seed", "num_days", "split", "as_text", "ranking"), CASES)
def test_day_after_day_gives_what_all_at_once_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, num_days: int, split: str, as_text: bool, ranking: bool
) -> None:
    monkeypatch.setattr("cluster.data.prepare.EVENTS_PER_PARTITION", 80)
    days, splits = random_days(seed, num_days, as_text), splits_of(split, num_days)
    users = sorted({event[0] for day in days for event in day})[::2]
    write_table(tmp_path / "users.parquet", {"user_id": users, "city": [f"c{n % 3}" for n in range(len(users))]})
    city = {"path": str(tmp_path / "users.parquet"), "features": {"city": {"kind": "categorical"}}}
    logs = {**columns_config(ranking), "users": city}
    for day, events in enumerate(days):
        write_day(tmp_path / "whole", day, events)
    whole = config_at(
        tmp_path, "at_once", logs={"path": str(tmp_path / "whole"), **logs}, tables=TABLES, split=splits[-1]
    )
    at_once = made(whole)

    before = None
    for day, events in enumerate(days):
        write_day(tmp_path / "logs", day, events)
        config = config_at(tmp_path, logs=logs, tables=TABLES, split=splits[day])
        manifest = made(config)
        verify_dataset(config.dataset_dir, manifest)
        assert manifest.generation == day
        after = state_of(config)
        check_untouched(before or after, after)
        before = after
    assert len(manifest.parts) > num_days
    assert comparable(config) == comparable(whole)
    assert counted(manifest) == counted(at_once)
    assert uses_of_items(config) == uses_of_items(whole)
    names = {path.name for path in config.dataset_dir.iterdir()}
    rejected = {f"rejected-{day:03d}.parquet" for day in range(num_days)}
    assert names == {"manifest.json", "card.html", "card.json", *rejected, *(file.path for file in manifest.files)}


def check_untouched(before: Any, after: Any) -> None:
    parts, rows, ids, numbers = before
    assert {name: after[0][name] for name in parts} == parts
    assert {user: row.number for user, row in rows.items()} == {user: after[1][user].number for user in rows}
    for user, row in rows.items():
        assert after[1][user].events[: len(row.events)] == row.events
        assert after[1][user].impressions[: len(row.impressions)] == row.impressions
    assert {item: after[2][item] for item, id in ids.items() if id} == {item: id for item, id in ids.items() if id}
    assert after[3][: len(numbers)] == numbers


def test_what_is_fitted_and_what_values_are_known_stays(tmp_path: Path) -> None:
    features = {
        "price": {"kind": "numeric"},
        "bucket": {"kind": "numeric", "column": "price", "buckets": 3},
        "brand": {"kind": "categorical"},
    }
    split = {"kind": "global_time", "validation_time": 100, "test_time": 200}
    first = [(1, 1, n, float(n), f"b{n % 3}") for n in range(6)] + [(1, 9, 150, 7.0, "new")]
    write_events(tmp_path / "logs/a.parquet", first, "price", "brand")
    before = made(config_at(tmp_path, logs={"features": features}, split=split))
    assert vocabulary(config_at(tmp_path), "brand") == [None, "b0", "b1", "b2"]
    write_events(tmp_path / "logs/b.parquet", [(1, 9, 160, 900.0, "new"), (1, 8, 250, 900.0, "new")], "price", "brand")
    moved = {"kind": "global_time", "validation_time": 200, "test_time": 240}
    config = config_at(tmp_path, logs={"features": features}, split=moved)
    after = made(config)
    assert [f.fitted for f in after.features] == [f.fitted for f in before.features]
    # A value that is known by now has its id from the next event on; what was written stays as it is.
    assert vocabulary(config, "brand") == [None, "b0", "b1", "b2", "new"]
    assert [features["brand"] for _, _, features in rows_by_user(config)[1].events][-3:] == [0, 4, 4]


def test_an_item_that_becomes_known_keeps_its_number(tmp_path: Path) -> None:
    split = {"kind": "global_time", "validation_time": 100, "test_time": 200}
    write_events(tmp_path / "logs/a.parquet", [(1, 5, 1), (1, 6, 2), (1, 7, 3), (1, 1, 150), (1, 9, 160)])
    config = config_at(tmp_path, split=split)
    made(config)
    assert (vocabulary(config), item_ids(config)) == ([None, 5, 6, 7, 1, 9], {5: 1, 6: 2, 7: 3, 1: 0, 9: 0})
    write_events(tmp_path / "logs/b.parquet", [(1, 4, 170), (2, 9, 175), (1, 0, 300)])
    config = config_at(tmp_path, split={**split, "validation_time": 165, "test_time": 250})
    made(config)
    assert vocabulary(config) == [None, 5, 6, 7, 1, 9, 0, 4]
    assert item_ids(config) == {5: 1, 6: 2, 7: 3, 1: 4, 9: 5, 0: 0, 4: 0}
    write_events(tmp_path / "logs/c.parquet", [(3, 2, 400)])
    config = config_at(tmp_path, split={**split, "validation_time": 350, "test_time": 450})
    manifest = made(config)
    assert item_ids(config) == {5: 1, 6: 2, 7: 3, 1: 4, 9: 5, 0: 6, 4: 7, 2: 0}
    assert (manifest.counts.num_items, manifest.counts.unknown_items, manifest.ids_are_numbers) == (7, 1, False)


def test_late_and_repeated_events_are_rejected_by_reason(tmp_path: Path) -> None:
    write_events(tmp_path / "logs/a.parquet", [(1, n, 10 * n) for n in range(1, 6)] + [(2, n, n) for n in range(1, 4)])
    made(config_at(tmp_path))
    late = [(1, 9, 49), (1, 5, 50), (1, 6, 50), (2, 1, 1), (2, 9, 2), (3, 9, 1), (2, 9, 4), (1, 7, 60)]
    write_events(tmp_path / "logs/b.parquet", late)
    message = refusal(config_at(tmp_path))
    for part in ("2 of 8", "2 late", "b.parquet row 0 (late)", "b.parquet row 4 (late)", "logs.max_rejected_fraction"):
        assert part in message
    config = config_at(tmp_path, logs={"max_rejected_fraction": 0.25})
    manifest = made(config)
    assert sorted(rejected_rows(config, 1)) == [
        ("b.parquet", 0, "late"), ("b.parquet", 1, "duplicate"), ("b.parquet", 3, "duplicate"), ("b.parquet", 4, "late"),
    ]  # fmt: skip
    assert manifest.counts.rejected == {"duplicate": 2, "late": 2}
    assert (manifest.counts.rows_read, manifest.counts.rows_kept) == (16, 12)
    rows = rows_by_user(config)
    assert rows[1].history[-3:] == [(5, 50), (6, 50), (7, 60)]
    assert (rows[2].history[-1], rows[3].history) == ((9, 4), [(9, 1)])


def test_an_event_before_an_old_impression_would_belong_into_its_history(tmp_path: Path) -> None:
    logs: dict[str, Any] = {"labels": ["click"], "max_rejected_fraction": 0.6}
    logs["history"] = {"path": str(tmp_path / "history")}
    write_events(tmp_path / "logs/a.parquet", [(1, 1, 50, 0.0), (1, 2, 100, 1.0)], "click")
    write_events(tmp_path / "history/a.parquet", [(1, 7, 10), (1, 8, 70)])
    made(config_at(tmp_path, logs=logs))
    write_events(tmp_path / "history/b.parquet", [(1, 9, 80), (1, 3, 100), (1, 4, 101), (2, 5, 1)])
    write_events(tmp_path / "logs/b.parquet", [(1, 6, 101, 0.0), (1, 6, 102, 0.0)], "click")
    config = config_at(tmp_path, logs=logs)
    assert made(config).counts.rejected == {"late": 1}
    assert rejected_rows(config, 1) == [("b.parquet", 0, "late")]
    row = rows_by_user(config)[1]
    assert row.history == [(7, 10), (8, 70), (3, 100), (4, 101)]
    assert [impression[:3] for impression in row.impressions] == [(1, 50, 1), (2, 100, 2), (6, 101, 3), (6, 102, 4)]


def test_a_source_alone_can_be_new(tmp_path: Path) -> None:
    logs: dict[str, Any] = {"labels": ["click"], "history": {"path": str(tmp_path / "history")}}
    write_events(tmp_path / "logs/a.parquet", [(1, 1, 50, 0.0), (2, 2, 100, 1.0)], "click")
    write_events(tmp_path / "history/a.parquet", [(1, 7, 10)])
    split = {"kind": "global_time", "validation_time": 90, "test_time": 200}
    made(config_at(tmp_path, logs=logs, split=split))
    write_events(tmp_path / "history/b.parquet", [(1, 8, 60), (3, 9, 1)])
    manifest = made(config_at(tmp_path, logs=logs, split=split))
    assert (manifest.counts.history_events, manifest.counts.rows_kept, manifest.counts.num_users) == (3, 5, 3)
    write_events(tmp_path / "logs/b.parquet", [(1, 1, 70, 0.0)], "click")
    config = config_at(tmp_path, logs=logs, split=split)
    assert made(config).generation == 2
    assert [impression[:3] for impression in rows_by_user(config)[1].impressions] == [(1, 50, 1), (1, 70, 2)]


def test_a_day_of_nothing_new_is_a_generation_without_parts(tmp_path: Path) -> None:
    events = [(user, item, 10 * item) for user in (1, 2, 3) for item in range(1, 6)]
    write_events(tmp_path / "logs/a.parquet", events)
    first = made(config_at(tmp_path))
    write_events(tmp_path / "logs/b.parquet", events[:4])
    config = config_at(tmp_path)
    second = made(config)
    assert (second.generation, second.parts, second.counts.rejected) == (1, first.parts, {"duplicate": 4})
    history = rows_by_user(config)
    write_events(tmp_path / "logs/c.parquet", [(1, 6, 60)])
    third = made(config)
    assert third.generation == 2  # a name of its own: what is committed is never written over
    assert {file.path.split("-")[1] for file in (*third.cuts, *third.vocabularies.values())} == {"002"}
    assert {user: row.history for user, row in rows_by_user(config).items()} == {
        user: [*row.history, (6, 60)] if user == 1 else row.history for user, row in history.items()
    }
    assert made(config) == third


def test_files_with_another_time_or_path_are_the_same_files(tmp_path: Path) -> None:
    """Copied to another machine, restored from a backup, renamed: what they hold counts."""
    for day in range(3):
        write_events(tmp_path / f"logs/{day}.parquet", [(user, n, 10 * day + n) for user in range(9) for n in range(3)])
    write_table(tmp_path / "items.parquet", {"item_id": [1], "price": [1.0]})
    items = {"path": str(tmp_path / "*.parquet"), "features": {"price": {"kind": "numeric"}}}
    before = made(config_at(tmp_path, logs={"items": items}))
    os.utime(tmp_path / "logs/0.parquet", ns=(0, 0))
    (tmp_path / "logs/1.parquet").rename(tmp_path / "logs/new_name.parquet")
    (tmp_path / "items.parquet").rename(tmp_path / "goods.parquet")
    found = made(config_at(tmp_path, logs={"items": items}))
    assert (found.digest, found.generation) == (before.digest, 0)
    assert found.fingerprint != before.fingerprint  # noted, so that the next command reads no log
    assert read_manifest(tmp_path / "dataset") == found
    (tmp_path / "logs").rename(tmp_path / "moved")
    write_events(tmp_path / "moved/3.parquet", [(1, 3, 30)])
    elsewhere = config_at(tmp_path, logs={"path": str(tmp_path / "moved"), "items": items})
    grown = made(elsewhere)
    assert (grown.generation, grown.grown_from) == (1, (before.digest,))
    assert grown.counts.rows_read == before.counts.rows_read + 1
    assert [Path(file["path"]).name for file in grown.source["files"] if file["generation"] == 1] == [
        "3.parquet",
        "goods.parquet",
    ]
    assert made(elsewhere) == grown


def test_without_hashes_in_the_manifest_the_time_of_change_decides(tmp_path: Path) -> None:
    """As of datasets that earlier versions made."""
    write_events(tmp_path / "logs/0.parquet", [(1, n, n) for n in range(5)])
    manifest = made(config_at(tmp_path))
    for file in manifest.source["files"]:
        del file["sha256"]
    write_manifest(tmp_path / "dataset", manifest)
    assert made(config_at(tmp_path)) == manifest
    os.utime(tmp_path / "logs/0.parquet", ns=(0, 0))
    assert "0.parquet changed" in refusal(config_at(tmp_path))


# What is refused


def test_old_files_that_changed_or_are_gone_are_refused(tmp_path: Path) -> None:
    for day in range(3):
        write_events(tmp_path / f"logs/{day}.parquet", [(user, n, 10 * day + n) for user in range(9) for n in range(3)])
    before = made(config_at(tmp_path))
    write_events(tmp_path / "logs/3.parquet", [(1, 3, 30)])
    moved = tmp_path / "1.parquet"
    (tmp_path / "logs/1.parquet").rename(moved)
    message = refusal(config_at(tmp_path))
    assert "it was made from" in message
    assert "0.parquet and 2 more" in message
    moved.rename(tmp_path / "logs/1.parquet")
    content = (tmp_path / "logs/1.parquet").read_bytes()
    (tmp_path / "logs/1.parquet").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    message = refusal(config_at(tmp_path))
    for part in ("1.parquet", "changed", "run.dataset"):
        assert part in message
    assert read_manifest(tmp_path / "dataset") == before


@pytest.mark.parametrize(
    ("column", "values", "source", "words"),
    [
        ("item_id", pa.array([1], pa.int32()), "logs", ['"item_id"', "int32 here and int64 in the logs of the dataset"]),
        ("user_id", pa.array(["1"]), "logs", ['"user_id"', "string here and int64"]),
        ("time", pa.array([1], pa.timestamp("s")), "logs", ['"time"', "int64 in the logs of the dataset"]),
        ("color", pa.array([7]), "logs", ['"color"', "logs.features.color", "int64 here and string"]),
        ("click", None, "logs", ['no column "click"', "logs.labels"]),
        ("city", pa.array([3]), "users", ['"city"', "logs.users.features.city", "int64 here and string"]),
        ("time", pa.array([1.0]), "history", ['"time"', "logs.history.time", "double here and int64"]),
    ],
)  # fmt: skip
def test_columns_that_drift_are_refused_with_file_and_column(
    tmp_path: Path, column: str, values: pa.Array | None, source: str, words: list[str]
) -> None:
    write_events(tmp_path / "logs/a.parquet", [(1, n, n, 1.0, "red") for n in range(5)], "click", "color")
    write_events(tmp_path / "history/a.parquet", [(1, 1, 1)])
    write_table(tmp_path / "users/a.parquet", {"user_id": [1], "city": ["x"]})
    logs = {
        "labels": ["click"],
        "history": {"path": str(tmp_path / "history")},
        "features": {"color": {"kind": "categorical"}},
        "users": {"path": str(tmp_path / "users"), "features": {"city": {"kind": "categorical"}}},
    }
    config = config_at(tmp_path, logs=logs)
    before = made(config)
    day: dict[str, Any] = {"user_id": [1], "item_id": [9], "time": [99], "click": [0.0], "color": ["red"]}
    files = {
        "logs": day,
        "history": {"user_id": [1], "item_id": [9], "time": [99]},
        "users": {"user_id": [2], "city": ["y"]},
    }
    columns = files[source]
    files[source] = {name: v for name, v in columns.items() if name != column} | (
        {} if values is None else {column: values}
    )
    for name, found in files.items():
        write_table(tmp_path / name / "b.parquet", found)
    message = refusal(config)
    for word in ("b.parquet", *words):
        assert word in message
    assert read_manifest(config.dataset_dir) == before
    assert not list(config.dataset_dir.glob(".work-*"))


def test_without_new_events_other_catalogues_and_splits_are_refused_by_name(tmp_path: Path) -> None:
    write_events(tmp_path / "logs/a.parquet", [(1, n, n) for n in range(5)])
    write_table(tmp_path / "items.parquet", {"item_id": [1], "price": [1.0]})
    logs = {"items": {"path": str(tmp_path / "items.parquet"), "features": {"price": {"kind": "numeric"}}}}
    made(config_at(tmp_path, logs=logs))
    message = refusal(config_at(tmp_path, logs=logs, split={"min_events": 4}))
    assert "'min_events': 3, 'validation_share': 1.0}, now" in message
    write_table(tmp_path / "items.parquet", {"item_id": [1, 2], "price": [1.0, 2.0]})
    assert "items or users have changed" in refusal(config_at(tmp_path, logs=logs))
    write_events(tmp_path / "logs/b.parquet", [(1, 2, 9)])
    config = config_at(tmp_path, logs=logs)
    manifest = made(config)  # with new events the catalogue is read anew
    assert manifest.items is not None
    prices = pq.read_table(config.dataset_dir / manifest.items.path).column("item.price").to_pylist()
    assert [prices[number] for number in range(1, 3)] == [pytest.approx(float("nan"), nan_ok=True), 1.0]
    assert prices[vocabulary(config).index(2)] == 2.0
